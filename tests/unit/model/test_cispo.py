"""The policy objectives do what their equations say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.model.cispo import ObjectiveSettings, batch_normaliser, group_normaliser, policy_loss

CISPO = ObjectiveSettings(objective="cispo", is_weight_max=5.0)
DAPO = ObjectiveSettings(objective="dapo")
GRPO = ObjectiveSettings(objective="grpo")


def gradient(ratios: list[float], advantage: float, objective: ObjectiveSettings) -> list[float]:
    """Gradient of the loss by log-probability, for tokens of one completion with these ratios."""
    behaviour = torch.full((1, len(ratios)), -1.0, dtype=torch.float64)
    logprobs = (behaviour + torch.tensor([ratios], dtype=torch.float64).log()).requires_grad_()
    mask = torch.ones(1, len(ratios), dtype=torch.bool)
    advantages = torch.tensor([advantage], dtype=torch.float64)

    result = policy_loss(
        logprobs, behaviour, advantages, mask, settings=objective, normaliser_tokens=1.0
    )
    result.loss.backward()

    assert logprobs.grad is not None
    return logprobs.grad[0].tolist()


@pytest.mark.parametrize("objective", [CISPO, DAPO, GRPO], ids=["cispo", "dapo", "grpo"])
@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_at_ratio_one_every_objective_is_reinforce(
    objective: ObjectiveSettings, advantage: float
) -> None:
    assert gradient([1.0, 1.0], advantage, objective) == pytest.approx([-advantage, -advantage])


def test_capped_token_keeps_its_gradient_in_cispo_at_the_cap() -> None:
    assert gradient([2.0, 50.0], 1.0, CISPO) == pytest.approx([-2.0, -5.0])


def test_token_beyond_the_clip_loses_its_gradient_in_dapo() -> None:
    assert gradient([1.27, 1.29, 50.0], 1.0, DAPO) == pytest.approx([-1.27, 0.0, 0.0])
    assert gradient([0.81, 0.79], -1.0, DAPO) == pytest.approx([0.81, 0.0])


def test_dapo_clips_higher_than_grpo() -> None:
    assert gradient([1.25], 1.0, GRPO) == pytest.approx([0.0])
    assert gradient([1.25], 1.0, DAPO) == pytest.approx([-1.25])


def test_a_token_moving_back_keeps_its_gradient_beyond_the_clip() -> None:
    assert gradient([3.0], -1.0, DAPO) == pytest.approx([3.0])


def test_floor_bounds_the_weight_from_below() -> None:
    floored = ObjectiveSettings(is_weight_min=0.5)

    assert gradient([0.1], 1.0, floored) == pytest.approx([-0.5])
    assert gradient([0.1], 1.0, CISPO) == pytest.approx([-0.1])


def test_unified_mask_turns_cispo_tokens_off_as_equation_7_says() -> None:
    masked = ObjectiveSettings(mask_low=0.2, mask_high=0.28)

    assert gradient([1.2, 1.3], 1.0, masked) == pytest.approx([-1.2, 0.0])
    assert gradient([0.9, 0.7, 1.3], -1.0, masked) == pytest.approx([0.9, 0.0, 1.3])


def test_gradient_flows_only_through_the_trained_logprobs() -> None:
    logprobs = torch.randn(2, 3, requires_grad=True)
    behaviour = torch.randn(2, 3, requires_grad=True)
    advantages = torch.randn(2, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)

    for objective in (CISPO, DAPO):
        result = policy_loss(
            logprobs, behaviour, advantages, mask, settings=objective, normaliser_tokens=6.0
        )
        result.loss.backward()

    assert logprobs.grad is not None
    assert behaviour.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("objective", [CISPO, DAPO], ids=["cispo", "dapo"])
@pytest.mark.parametrize("rubbish", [1e4, -math.inf, math.nan])
def test_masked_tokens_contribute_nothing(objective: ObjectiveSettings, rubbish: float) -> None:
    logprobs = torch.tensor([[-1.0, rubbish]], requires_grad=True)
    behaviour = torch.tensor([[-1.2, -1.0]])
    mask = torch.tensor([[True, False]])

    result = policy_loss(
        logprobs, behaviour, torch.ones(1), mask, settings=objective, normaliser_tokens=1.0
    )
    result.loss.backward()
    alone = policy_loss(
        torch.tensor([[-1.0]]), behaviour[:, :1], torch.ones(1), mask[:, :1],
        settings=objective, normaliser_tokens=1.0,
    )  # fmt: skip

    assert result.loss.item() == pytest.approx(alone.loss.item())
    assert result.mean_ratio.item() == pytest.approx(alone.mean_ratio.item())
    assert logprobs.grad is not None
    assert logprobs.grad[0, 1].item() == 0.0


def test_group_normaliser_weighs_groups_equally_and_batch_normaliser_tokens_equally() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    groups = torch.tensor([70, 70, 3, 3])

    by_group = group_normaliser(mask, groups)
    by_batch = batch_normaliser(mask)

    share_of_short_group = {
        "group": (mask / by_group[:, None])[2:].sum().item(),
        "batch": (mask / by_batch)[2:].sum().item(),
    }
    assert by_group.tolist() == [16.0, 16.0, 4.0, 4.0]
    assert share_of_short_group == pytest.approx({"group": 0.5, "batch": 0.2})


def test_extreme_log_ratios_stay_finite() -> None:
    logprobs = torch.tensor([[0.0, -900.0]], requires_grad=True)
    behaviour = torch.tensor([[-900.0, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)

    result = policy_loss(
        logprobs, behaviour, torch.ones(1), mask, settings=CISPO, normaliser_tokens=2.0
    )

    assert torch.isfinite(result.loss)
    assert result.ratio_max.item() == pytest.approx(math.exp(20.0))
    assert result.capped_share.item() == pytest.approx(0.5)


@given(
    ratio=st.floats(0.01, 100.0),
    advantage=st.floats(-3, 3),
    cap=st.floats(1.0, 10.0),
)
@settings(max_examples=50, deadline=None)
def test_cispo_gradient_is_the_clipped_ratio_times_the_advantage(
    ratio: float, advantage: float, cap: float
) -> None:
    found = gradient([ratio], advantage, ObjectiveSettings(is_weight_max=cap))

    assert found == pytest.approx([-min(ratio, cap) * advantage], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"is_weight_max": 0.5}, "is_weight_max = 0.5"),
        ({"is_weight_max": math.nan}, "is_weight_max = nan"),
        ({"is_weight_min": 1.5}, "is_weight_min = 1.5"),
        ({"objective": "ppo"}, "objective = 'ppo'"),
        ({"clip_low": 0.0}, "clip_low = 0.0"),
        ({"mask_low": 0.2}, "both or neither"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveSettings(**changed)


def test_disagreeing_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"advantages \(2,\)"):
        policy_loss(
            torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(2), torch.ones(1, 3),
            settings=CISPO, normaliser_tokens=3.0,
        )  # fmt: skip

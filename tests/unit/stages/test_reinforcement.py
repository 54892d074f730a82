"""Rewards, advantages and the curriculum, without a model."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1.data_recipes.tasks.families import Verdict, make_tasks
from m1.infra.errors import StageFailedError
from m1.stages.rl.advantage import group_advantages, judged_advantages, reward
from m1.stages.rl.curriculum import FLOOR, Curriculum
from m1.stages.rl.health import check_gap, check_loops, loop_share, repeated_share, same_share
from m1.stages.rl.rollout import Group, Sample
from m1.stages.rl.update import policy_objective, to_micro_batches, weighted_samples
from m1.stages.rl.windows import CONVERGED_STEPS, WindowLadder
from m1.stages.settings import ReinforceSettings, TaskMix

PASS = Verdict(outcome="pass", correctness=1.0, format=1.0)
FAIL = Verdict(outcome="fail", correctness=0.0, format=1.0)


def settings(**changes: object) -> ReinforceSettings:
    base: dict[str, object] = {
        "steps": 100,
        "window_tokens": 100,
        "tasks": {"max_fold": TaskMix()},
        "later_tasks": {"any_high": TaskMix()},
        "first_phase_fraction": 0.3,
        "format_reward": 0.1,
        "overlong_penalty": 0.5,
    }
    return ReinforceSettings.model_validate(base | changes)


def test_a_right_well_formed_answer_earns_correctness_and_format() -> None:
    assert reward(PASS, length_tokens=10, was_cut=False, settings=settings()) == 1.1


def test_a_wrong_well_formed_answer_earns_its_format_only() -> None:
    assert reward(FAIL, length_tokens=10, was_cut=False, settings=settings()) == 0.1


@pytest.mark.parametrize(
    ("length", "penalty"),
    [
        pytest.param(80, 0.0, id="before-the-last-fifth"),
        pytest.param(90, 0.25, id="half-way-through-it"),
        pytest.param(100, 0.5, id="at-the-window"),
    ],
)
def test_the_overlong_penalty_grows_over_the_last_fifth(length: int, penalty: float) -> None:
    earned = reward(PASS, length_tokens=length, was_cut=False, settings=settings())

    assert earned == pytest.approx(1.1 - penalty)


def test_advantages_have_zero_mean_and_unit_deviation() -> None:
    advantages = group_advantages([1.0, 0.0, 0.0, 1.0, 1.0])

    assert advantages is not None
    assert sum(advantages) == pytest.approx(0.0, abs=1e-12)
    assert sum(a * a for a in advantages) / 5 == pytest.approx(1.0)


def test_a_group_of_equal_rewards_has_no_signal() -> None:
    assert group_advantages([0.1] * 8) is None


def test_later_tasks_wait_for_the_first_phase_to_end() -> None:
    curriculum = Curriculum(settings())

    assert curriculum.weights(0)["any_high"] == 0.0
    assert curriculum.weights(29)["any_high"] == 0.0
    assert 0.0 < curriculum.weights(40)["any_high"] < 0.5
    assert curriculum.weights(60)["any_high"] == pytest.approx(0.5)


def test_a_mastered_family_keeps_a_floor_and_yields_to_the_uncertain_one() -> None:
    curriculum = Curriculum(settings())
    for _ in range(50):
        curriculum.observe({"max_fold": [1.0] * 8, "any_high": [1.0, 0.0]})

    weights = curriculum.weights(99)

    assert weights["max_fold"] == pytest.approx(FLOOR / (FLOOR + 1.0), abs=0.01)


def test_the_curriculum_survives_a_checkpoint() -> None:
    curriculum = Curriculum(settings())
    curriculum.observe({"max_fold": [1.0, 0.0, 0.0, 0.0]})

    restored = Curriculum(settings())
    restored.restore(curriculum.to_json())

    drawn = [c.draw(50, 16, random.Random(5)) for c in (curriculum, restored)]
    assert drawn[0] == drawn[1]


def test_a_sample_that_could_not_be_judged_moves_no_baseline_and_gets_no_advantage() -> None:
    lost = Verdict(outcome="infra_error", correctness=0.0, format=1.0)

    advantages = judged_advantages([PASS, lost, FAIL], [1.1, 0.1, 0.1])

    assert advantages == [pytest.approx(1.0), 0.0, pytest.approx(-1.0)]


def test_a_group_that_could_not_be_judged_has_no_signal() -> None:
    lost = Verdict(outcome="infra_error", correctness=0.0, format=1.0)

    assert judged_advantages([lost, lost], [0.1, 1.1]) is None
    assert judged_advantages([PASS, lost], [1.1, 0.1]) is None


# ---- windows -------------------------------------------------------------------------------------


def ladder() -> WindowLadder:
    return WindowLadder((100, 200, 400))


def test_a_window_grows_when_perplexity_has_converged_and_lengths_come_near() -> None:
    chosen = ladder()
    grown = [chosen.observe(perplexity=1.5, length_p99=95) for _ in range(CONVERGED_STEPS)]
    assert grown == [False] * (CONVERGED_STEPS - 1) + [True]
    assert chosen.window_tokens == 200


@pytest.mark.parametrize(
    ("perplexities", "length"),
    [
        pytest.param([1.5] * CONVERGED_STEPS, 80, id="lengths-far-below-the-window"),
        pytest.param([3.0 - 0.2 * n for n in range(CONVERGED_STEPS)], 100, id="still-falling"),
        pytest.param([1.5] * (CONVERGED_STEPS - 1), 100, id="too-few-steps"),
    ],
)
def test_a_window_stays_otherwise(perplexities: list[float], length: float) -> None:
    chosen = ladder()
    assert not any(chosen.observe(perplexity=p, length_p99=length) for p in perplexities)
    assert chosen.window_tokens == 100


def test_the_last_window_never_grows_and_growing_starts_the_count_anew() -> None:
    chosen, windows = ladder(), []
    for _ in range(5 * CONVERGED_STEPS):
        chosen.observe(perplexity=1.5, length_p99=1000)
        windows.append(chosen.window_tokens)
    assert windows.count(100) == CONVERGED_STEPS - 1
    assert windows.count(200) == CONVERGED_STEPS
    assert windows[-1] == 400


@given(st.lists(st.tuples(st.floats(1.0, 2.0), st.floats(50, 500)), max_size=40))
def test_a_ladder_that_went_through_a_checkpoint_climbs_the_same(batches) -> None:
    one, other = ladder(), ladder()
    for perplexity, length in batches:
        one.observe(perplexity=perplexity, length_p99=length)
        other.observe(perplexity=perplexity, length_p99=length)
        copy = ladder()
        copy.restore(other.to_json())
        other = copy
    assert one == other


@pytest.mark.parametrize("windows", [(200, 100), (100,), (8,)])
def test_windows_that_do_not_grow_up_to_the_stages_own_are_refused(windows) -> None:
    with pytest.raises(ValueError, match="growing"):
        settings(windows=windows)


# ---- health --------------------------------------------------------------------------------------


def test_a_response_that_goes_round_in_circles_is_a_loop_and_one_that_does_not_is_none() -> None:
    looping, plain = [1, 2, 3] * 30, list(range(90))
    assert repeated_share(plain) == 0.0
    assert repeated_share([]) == 0.0
    assert loop_share([looping, plain]) == 0.5
    assert loop_share([[*range(500), *looping]]) == 1.0


def test_identical_responses_are_counted_within_their_prompt() -> None:
    assert same_share([[1], [1], [1], [2]]) == 0.75


@pytest.mark.parametrize("gap", [0.2, float("nan")])
def test_a_gap_between_sampler_and_trainer_ends_the_stage(gap: float) -> None:
    check_gap(0.05, largest=0.1, step=3)
    with pytest.raises(StageFailedError, match=r"step 3: .*largest_gap_nats = 0.1"):
        check_gap(gap, largest=0.1, step=3)


def test_a_policy_of_loops_ends_the_stage() -> None:
    check_loops(0.5, largest=0.5, step=3)
    with pytest.raises(StageFailedError, match="60% of the responses"):
        check_loops(0.6, largest=0.5, step=3)


# ---- updates -------------------------------------------------------------------------------------


def sample(length: int, advantage: float, *, is_masked: bool = False) -> Sample:
    return Sample(
        family="max_fold", prompt_token_ids=(1, 2), response_token_ids=tuple(range(3, 3 + length)),
        behaviour_logprobs=(-0.5,) * length, reward=0.0, correctness=0.0, advantage=advantage,
        finish_reason="stop", text="", is_masked=is_masked,
    )  # fmt: skip


def group(*samples: Sample, has_signal: bool = True) -> Group:
    task = make_tasks("max_fold", count=1, difficulty=4, seed=1, split="reinforce")[0]
    return Group(task=task, samples=samples, has_signal=has_signal)


GROUPS = [
    group(sample(2, 1.0), sample(6, -1.0)),
    group(sample(4, 1.0), sample(20, -1.0)),
    group(sample(9, 0.0), has_signal=False),
    group(sample(7, 0.5), sample(50, 0.0, is_masked=True)),
]


@pytest.mark.parametrize("normaliser", ["batch", "group", "sample"])
def test_weights_have_mean_one_over_all_tokens(normaliser: str) -> None:
    weighted = weighted_samples(GROUPS, normaliser=normaliser)
    tokens = [len(s.response_token_ids) for s, _ in weighted]
    assert len(weighted) == 5, "neither masked samples nor groups without signal"
    total = sum(weight * count for (_, weight), count in zip(weighted, tokens, strict=True))
    assert total == pytest.approx(sum(tokens))


def test_each_normaliser_makes_its_own_unit_count_the_same() -> None:
    def mass(normaliser: str) -> list[float]:
        chosen = weighted_samples(GROUPS, normaliser=normaliser)
        return [weight * len(s.response_token_ids) for s, weight in chosen]

    by_group = mass("group")
    assert by_group[0] + by_group[1] == pytest.approx(by_group[2] + by_group[3])
    assert by_group[4] == pytest.approx(by_group[0] + by_group[1])
    assert mass("sample") == pytest.approx([39 / 5] * 5)
    assert {weight for _, weight in weighted_samples(GROUPS, normaliser="batch")} == {1.0}


def test_the_loss_of_a_batch_is_minus_the_weighted_mean_of_the_objective() -> None:
    """Equation 4 by hand: on the first update every ratio is 1."""
    chosen = settings(normaliser="group")
    weighted = weighted_samples(GROUPS, normaliser="group")
    [batch] = to_micro_batches(weighted, rank=0, world=1, windows=8)
    logprobs_BT = batch["behaviour_BT"].clone().requires_grad_()
    loss, sums = policy_objective(chosen)(logprobs_BT, batch)
    tokens = float(batch["loss_mask_BT"].sum())

    means = []
    for samples in [GROUPS[0].samples, GROUPS[1].samples, GROUPS[3].samples[:1]]:
        count = sum(len(s.response_token_ids) for s in samples)
        means.append(sum(s.advantage * -0.5 * len(s.response_token_ids) for s in samples) / count)
    assert float(loss.detach()) / tokens == pytest.approx(-sum(means) / len(means))
    assert float(sums["gap"]) == 0.0
    assert float(sums["ratio_max"]) == 1.0


@pytest.mark.parametrize(("world", "windows"), [(1, 2), (2, 2), (2, 8), (6, 1)])
def test_ranks_share_the_samples_in_equally_many_micro_batches(world: int, windows: int) -> None:
    weighted = weighted_samples(GROUPS, normaliser="batch")
    parts = [
        to_micro_batches(weighted, rank=rank, world=world, windows=windows) for rank in range(world)
    ]
    assert {len(batches) for batches in parts} == {-(-5 // (world * windows))}
    every = [batch for batches in parts for batch in batches]
    assert all(batch["tokens_BT"].shape[0] <= windows for batch in every)
    assert sum(float(batch["loss_mask_BT"].sum()) for batch in every) == 39

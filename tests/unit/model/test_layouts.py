"""What may be spread over which ranks, and who holds what. Nothing here starts a rank."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.infra.errors import InvalidSettingError
from m1.model.config import ModelConfig, ParallelLayout
from m1.model.context_parallel import own_share, take_own
from m1.model.layout_check import check_layout, check_window, window_unit
from m1.model.pipeline_split import head_flops, layer_flops, layers_per_rank

M1 = ModelConfig()
SMALL = ModelConfig(
    num_layers=7, softmax_every=3, hidden_size=32, num_heads=12, head_width=8,
    num_key_value_heads=6, num_experts=6, experts_per_token=2, expert_hidden_size=24,
    vocabulary_size=96, rotary_width=4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "field", "accepted"),
    [
        (ParallelLayout(processes_per_node=4, tensor=4), "layout.tensor", "1, 2, 3, 6:"),
        (ParallelLayout(processes_per_node=8, pipeline=8), "layout.pipeline", "1 to num_layers"),
        (ParallelLayout(processes_per_node=4, expert=4), "layout.expert", "1, 2:"),
        (ParallelLayout(processes_per_node=6, pipeline=3, expert=6), "layout.expert", "1, 2:"),
    ],
)  # fmt: skip
def test_a_layout_the_model_cannot_share_is_refused_with_what_would_do(layout, field, accepted):
    with pytest.raises(InvalidSettingError) as refused:
        check_layout(SMALL, layout)

    assert refused.value.field == field
    assert refused.value.value == getattr(layout, field.split(".")[1])
    assert refused.value.accepted.startswith(accepted)


@pytest.mark.parametrize("expert", [1, 2, 4, 8, 16, 32])
def test_the_released_model_fits_eight_tensor_ranks_and_any_power_of_two_of_experts(expert):
    check_layout(M1, ParallelLayout(nodes=64, processes_per_node=8, tensor=8, expert=expert))


def test_a_window_must_give_every_context_rank_two_equal_chunks():
    layout = ParallelLayout(processes_per_node=8, context=4, tensor=2)

    check_window(layout, 1024)
    with pytest.raises(InvalidSettingError) as refused:
        check_window(layout, 1016, field="extend-32k.window_tokens")

    assert (refused.value.field, refused.value.value) == ("extend-32k.window_tokens", 1016)
    assert refused.value.accepted.startswith("a multiple of 16 ")


def all_splits(layers: int, ranks: int) -> list[list[int]]:
    cuts = combinations(range(1, layers), ranks - 1)
    return [[b - a for a, b in pairwise([0, *cut, layers])] for cut in cuts]


@given(
    layers=st.integers(1, 11),
    ranks=st.integers(1, 11),
    every=st.integers(1, 5),
    window=st.sampled_from([64, 4096, 1_048_576]),
)
@settings(max_examples=60, deadline=None)
def test_no_other_split_has_a_faster_slowest_rank(layers, ranks, every, window):
    ranks = min(ranks, layers)
    model = M1.model_copy(update={"num_layers": layers, "softmax_every": every})
    work = layer_flops(model, window_tokens=window)
    work[-1] += head_flops(model)

    def slowest(split: list[int]) -> float:
        edges = [sum(split[:rank]) for rank in range(ranks + 1)]
        return max(sum(work[a:b]) for a, b in pairwise(edges))

    chosen = layers_per_rank(model, ranks, window_tokens=window)

    assert chosen in all_splits(layers, ranks)
    best = min(map(slowest, all_splits(layers, ranks)))
    assert slowest(chosen) == pytest.approx(best, rel=1e-9)


def test_the_rank_with_the_head_of_m1_holds_two_layers_less():
    assert layers_per_rank(M1, 8, window_tokens=32_768) == [11, 11, 10, 10, 10, 10, 10, 8]


@given(ranks=st.integers(1, 6), chunk=st.integers(1, 5))
def test_context_ranks_together_hold_a_window_once_and_do_equal_causal_work(ranks, chunk):
    length = 2 * ranks * chunk
    positions = torch.arange(length)

    parts = [take_own(positions, 0, rank=rank, ranks=ranks) for rank in range(ranks)]

    assert sorted(torch.cat(parts).tolist()) == list(range(length))
    attended = {int((part + 1).sum()) for part in parts}
    assert len(attended) == 1


@given(ranks=st.integers(1, 4), tensor=st.integers(1, 3), length=st.integers(1, 40))
def test_a_share_keeps_every_token_beside_its_target_and_mask(ranks, tensor, length):
    tokens = torch.arange(2 * length).view(2, length) + 1
    batch = {
        "tokens_BT": tokens,
        "targets_BT": tokens * 10,
        "loss_mask_BT": torch.ones(2, length),
        "document_ids_BT": torch.zeros(2, length, dtype=torch.long),
        "advantages_B": torch.tensor([1.0, 2.0]),
    }
    unit = window_unit(tensor=tensor, context=ranks)

    shares = [own_share(batch, rank=rank, ranks=ranks, unit_tokens=unit) for rank in range(ranks)]

    sizes = {share["tokens_BT"].shape[1] for share in shares}
    assert len(sizes) == 1
    assert sizes.pop() % tensor == 0
    for share in shares:
        assert torch.equal(share["targets_BT"], share["tokens_BT"] * 10)
        assert torch.equal(share["loss_mask_BT"], (share["tokens_BT"] > 0).float())
        assert torch.equal(share["advantages_B"], batch["advantages_B"])
        assert share["document_ids_BT"].shape[1] % unit == 0
        assert (share["document_ids_BT"][:, length:] == -1).all()
    held = torch.cat([share["tokens_BT"] for share in shares], 1)
    assert sorted(held[held > 0].tolist()) == list(range(1, 2 * length + 1))


def test_a_window_that_cannot_be_dealt_is_refused():
    with pytest.raises(ValueError, match="window of 10 tokens; accepted: a multiple of 4"):
        take_own(torch.zeros(10), 0, rank=0, ranks=2)

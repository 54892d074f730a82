"""Every parallel layout trains exactly as one rank does, and checkpoints move between layouts.

Ranks are real processes over gloo, started twice per world size for all tests here; on a machine
with GPUs they are nccl ranks of one GPU each, and layouts that need more GPUs are left out.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from m1.model.reference import masked_softmax_attention, recurrent_lightning_attention
from tests.parity.layouts import (
    CASES,
    SAVED_STEPS,
    SLOPES_H,
    STEPS,
    Curve,
    Findings,
    attend_over_ranks,
    attention_case,
    examine,
    layout,
    load_and_train,
    windows_of_step,
)
from tests.parity.ranks import on_ranks

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
MOST_RANKS = torch.cuda.device_count() if torch.cuda.is_available() else 4
ALL_LAYOUTS = {
    "one": layout(),
    "tensor": layout(tensor=2),
    "pipeline": layout(pipeline=2),
    "expert": layout(ranks=2, expert=2),
    "context": layout(context=2),
    "data": layout(ranks=2),
    "tensor of four": layout(tensor=4),
    "pipeline of four": layout(pipeline=4),
    "expert of four": layout(ranks=4, expert=4),
    "context of four": layout(context=4),
    "tensor x expert": layout(ranks=4, tensor=2, expert=2),
    "context x data": layout(ranks=4, context=2),
    "tensor x pipeline": layout(tensor=2, pipeline=2),
    "tensor x context, experts over all": layout(tensor=2, context=2, expert=4),
    "pipeline x context": layout(pipeline=2, context=2),
    "pipeline x expert": layout(ranks=4, pipeline=2, expert=2),
}
LAYOUTS = {name: every for name, every in ALL_LAYOUTS.items() if every.world_size <= MOST_RANKS}
OTHERS = [name for name in LAYOUTS if name != "one"]
WORLDS = [world for world in (1, 2, 4) if world <= MOST_RANKS]
# every layout hands a checkpoint to another one, and every layout receives one
HANDOVERS = dict(zip(LAYOUTS, [*OTHERS[7:], *OTHERS[:7], "one"], strict=True))


def of_world(world: int) -> dict:
    return {name: chosen for name, chosen in LAYOUTS.items() if chosen.world_size == world}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def found(directory: Path) -> dict[str, list[Findings]]:
    """Of every rank of every layout."""
    findings: dict[str, list[Findings]] = {}
    for world in WORLDS:
        chosen = of_world(world)
        answers = on_ranks(world, examine, chosen, directory, meetings=len(chosen))
        findings |= {name: [answer[name] for answer in answers] for name in chosen}
    return findings


@pytest.fixture(scope="module")
def moved(found: object, directory: Path) -> dict[str, Curve]:
    """Of the layout that a checkpoint was loaded in, by its name."""
    curves: dict[str, Curve] = {}
    for world in WORLDS:
        pairs = {
            to: (source, LAYOUTS[to])
            for source, to in HANDOVERS.items()
            if LAYOUTS[to].world_size == world
        }
        answers = on_ranks(world, load_and_train, pairs, directory, meetings=len(pairs))
        curves |= answers[0]
    return curves


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_gradient_norms_are_those_of_one_rank(found, name):
    expected = torch.tensor(found["one"][0].curve)

    for rank in found[name]:
        assert len(rank.curve) == STEPS
        assert (torch.tensor(rank.curve) - expected).abs().max() < TOLERANCE


def test_one_rank_learns_so_that_equal_curves_say_something(found):
    losses = [loss for loss, _norm in found["one"][0].curve]

    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_of_another_layout_is_followed_by_the_same_losses(found, moved, name):
    expected = torch.tensor(found["one"][0].curve[SAVED_STEPS:])

    assert (torch.tensor(moved[name]) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", OTHERS)
def test_every_rank_measures_the_whole_window(found, name):
    expected = found["one"][0].nats_BT

    for rank in found[name]:
        assert rank.nats_BT.shape == rank.nats_from_logits_BT.shape == expected.shape
        assert abs(rank.nats_BT - expected).max() < TOLERANCE
        assert abs(rank.nats_from_logits_BT - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", OTHERS)
def test_sequences_of_any_length_are_padded_without_changing_the_loss(found, name):
    expected = found["one"][0].odd_loss

    assert all(abs(rank.odd_loss - expected) < TOLERANCE for rank in found[name])


@pytest.mark.parametrize("name", OTHERS)
def test_every_rank_can_have_the_whole_model(found, name):
    assert {rank.weights_sha256 for rank in found[name]} == {found["one"][0].weights_sha256}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_document_does_not_notice_what_its_neighbours_hold(found, name):
    ids = windows_of_step(0)["document_ids_BT"]
    rewritten = ids % 2 == 1
    # the last target of a document is the first token of the next one
    kept = ~rewritten & (torch.cat([ids[:, 1:], ids[:, -1:]], 1) == ids)

    rank = found[name][0]

    change = torch.from_numpy(rank.rewritten_nats_BT - rank.nats_BT).abs()
    assert change[kept].max() < 1e-6
    assert change[rewritten].mean() > 0.1


@cache
def spread_attention(context: int) -> dict[str, list[NDArray[Any]]]:
    return on_ranks(context, attend_over_ranks, context)[0]


def whole_attention(kind: str, case: str) -> list[torch.Tensor]:
    """Output and gradients by the slow forms in fp64, [T, B, H, W]."""
    length, has_documents = CASES[case]
    tensors, ids = attention_case(length, has_documents)
    q, k, v, grad = (x.double() for x in tensors)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    if kind == "softmax":
        output = masked_softmax_attention(*inputs, document_ids_BT=ids)
    else:
        output, _ = recurrent_lightning_attention(*inputs, SLOPES_H.double(), document_ids_BT=ids)
    output.backward(grad)
    return [x.transpose(0, 1) for x in (output.detach(), *(x.grad for x in inputs))]


@pytest.mark.parametrize("context", WORLDS[1:])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["lightning", "softmax"])
def test_attention_over_ranks_and_its_gradients_equal_the_slow_form(kind, case, context):
    found = spread_attention(context)[f"{kind}, {case}"]

    for ours, theirs in zip(found, whole_attention(kind, case), strict=True):
        error = (torch.from_numpy(ours) - theirs).abs().max()
        assert error < TOLERANCE * max(1.0, theirs.abs().max())

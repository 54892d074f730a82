"""Every parallel layout trains exactly as one rank does, and checkpoints move between layouts.

Ranks are real processes over gloo: two rounds of two and of four ranks serve all tests here.
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
    attend_over_ranks,
    attention_case,
    layout,
    load_and_train,
    measure,
    train_and_save,
    windows_of_step,
)
from tests.parity.ranks import on_ranks

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
LAYOUTS = {
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
OTHERS = [name for name in LAYOUTS if name != "one"]
WORLDS = (1, 2, 4)
# every layout hands a checkpoint to another one, and every layout receives one
HANDOVERS = dict(zip(LAYOUTS, [*OTHERS[7:], *OTHERS[:7], "one"], strict=True))


def of_world(world: int) -> dict:
    return {name: chosen for name, chosen in LAYOUTS.items() if chosen.world_size == world}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def curves(directory: Path) -> dict[str, list[Curve]]:
    """Of every rank of every layout."""
    found: dict[str, list[Curve]] = {}
    for world in WORLDS:
        chosen = of_world(world)
        answers = on_ranks(world, train_and_save, chosen, directory, groups=len(chosen))
        found |= {name: [answer[name] for answer in answers] for name in chosen}
    return found


@pytest.fixture(scope="module")
def moved(curves: object, directory: Path) -> dict[str, Curve]:
    """Of the layout that a checkpoint was loaded in, by its name."""
    found: dict[str, Curve] = {}
    for world in WORLDS:
        pairs = {
            to: (source, LAYOUTS[to])
            for source, to in HANDOVERS.items()
            if LAYOUTS[to].world_size == world
        }
        answers = on_ranks(world, load_and_train, pairs, directory, groups=len(pairs))
        found |= answers[0]
    return found


@pytest.fixture(scope="module")
def nats() -> dict[str, list[list[NDArray[Any]]]]:
    found: dict[str, list[list[NDArray[Any]]]] = {}
    for world in WORLDS:
        chosen = of_world(world)
        answers = on_ranks(world, measure, chosen, groups=len(chosen))
        found |= {name: [answer[name] for answer in answers] for name in chosen}
    return found


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_gradient_norms_are_those_of_one_rank(curves, name):
    (expected,) = curves["one"]

    for found in curves[name]:
        assert len(found) == STEPS
        assert torch.tensor(found).sub(torch.tensor(expected)).abs().max() < TOLERANCE


def test_one_rank_learns_so_that_equal_curves_say_something(curves):
    (expected,) = curves["one"]

    assert expected[-1][0] < expected[0][0] - 0.1


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_of_another_layout_is_followed_by_the_same_losses(curves, moved, name):
    (expected,) = curves["one"]

    found = moved[name]

    assert torch.tensor(found).sub(torch.tensor(expected[SAVED_STEPS:])).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", OTHERS)
def test_every_rank_measures_the_whole_window(nats, name):
    ((expected, _, _),) = nats["one"]

    for direct, _, from_logits in nats[name]:
        assert direct.shape == from_logits.shape == expected.shape
        assert abs(direct - expected).max() < TOLERANCE
        assert abs(from_logits - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_document_does_not_notice_what_its_neighbours_hold(nats, name):
    ids = windows_of_step(0)["document_ids_BT"]
    rewritten = ids % 2 == 1
    # the last target of a document is the first token of the next one
    kept = ~rewritten & (torch.cat([ids[:, 1:], ids[:, -1:]], 1) == ids)

    before, after, _ = map(torch.from_numpy, nats[name][0])

    assert (before - after)[kept].abs().max() < 1e-6
    assert (before - after)[rewritten].abs().mean() > 0.1


@cache
def spread_attention(context: int) -> dict[str, list[NDArray[Any]]]:
    return on_ranks(context, attend_over_ranks, context, groups=1)[0]


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


@pytest.mark.parametrize("context", [2, 4])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["lightning", "softmax"])
def test_attention_over_ranks_and_its_gradients_equal_the_slow_form(kind, case, context):
    found = spread_attention(context)[f"{kind}, {case}"]

    for ours, theirs in zip(found, whole_attention(kind, case), strict=True):
        error = (torch.from_numpy(ours) - theirs).abs().max()
        assert error < TOLERANCE * max(1.0, theirs.abs().max())

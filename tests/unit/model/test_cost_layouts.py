"""Which layouts are refused, and that the one offered instead works and is the nearest."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.cost.layouts import (
    AXES,
    GPU_BYTES,
    divisors,
    layout_problems,
    nearest_layout,
)
from m1.model.cost.memory import memory_per_gpu
from m1.model.cost.step import StepShape

M1 = ModelConfig()
SMALL = ModelConfig(
    num_layers=12, hidden_size=64, num_heads=8, head_width=16, num_key_value_heads=4,
    num_experts=8, experts_per_token=2, expert_hidden_size=64, vocabulary_size=1024,
    rotary_width=8,
)  # fmt: skip
CLUSTER = {"nodes": 64, "processes_per_node": 8, "tensor": 8, "pipeline": 8, "context": 8}
LONG = StepShape(window_tokens=1_048_576, windows_per_step=16)


@pytest.mark.parametrize(
    ("changed", "field", "accepted"),
    [
        ({"tensor": 3}, "tensor", "divisor of 64 heads"),
        ({"tensor": 16}, "tensor", "divisor of 8 key/value heads"),
        ({"pipeline": 128}, "pipeline", "at most 80 layers"),
        ({"expert": 5}, "expert", "divisor of 32 experts"),
        ({"context": 3}, "context", "divisor of 1048576 window tokens"),
        ({"context": 16}, "tensor x pipeline x context", "divisor of 512 ranks"),
        ({"nodes": 1, "pipeline": 1, "context": 1, "expert": 32}, "pipeline x expert", "8 ranks"),
        ({"pipeline": 1, "context": 1}, "data x micro_batch_windows", "16 windows per step"),
        ({"expert": 8}, "gigabytes per GPU", "at most 80"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_layout_that_cannot_work_is_refused_with_the_reason(
    changed: dict[str, int], field: str, accepted: str
) -> None:
    problems = layout_problems(M1, {**CLUSTER, **changed, "recompute": "full"}, LONG)

    assert problems[0].field == field
    assert accepted in problems[0].accepted


def test_reinforcement_may_leave_ranks_with_fewer_windows() -> None:
    layout = {"nodes": 8}

    assert not layout_problems(
        SMALL, layout, StepShape(window_tokens=64, windows_per_step=9, is_even=False)
    )
    assert layout_problems(SMALL, layout, StepShape(window_tokens=64, windows_per_step=9))


def test_a_layout_that_works_is_its_own_nearest() -> None:
    wanted = {**CLUSTER, "expert": 32, "recompute": "full"}

    assert layout_problems(M1, wanted, LONG) == ()
    assert nearest_layout(M1, wanted, LONG) == ParallelLayout.model_validate(wanted)


def test_the_former_layout_of_the_full_preset_needs_more_expert_ranks() -> None:
    nearest = nearest_layout(M1, {**CLUSTER, "expert": 8, "recompute": "full"}, LONG)

    assert nearest == ParallelLayout(**CLUSTER, expert=32, recompute="full")


def test_where_no_layout_fits_more_machines_are_offered() -> None:
    step = StepShape(window_tokens=8192, windows_per_step=128)

    nearest = nearest_layout(M1, {"nodes": 8, "processes_per_node": 8}, step)

    assert nearest is not None
    assert nearest.nodes > 8
    smaller = {"nodes": nearest.nodes // 2, "processes_per_node": 8}
    assert _by_trying_all(M1, smaller, step, GPU_BYTES) is None


def test_an_odd_window_on_a_prime_number_of_heads_has_no_layout() -> None:
    model = SMALL.model_copy(update={"num_heads": 7, "num_key_value_heads": 7, "num_layers": 2})
    step = StepShape(window_tokens=17, windows_per_step=1)

    assert nearest_layout(model, {"nodes": 3, "pipeline": 2}, step) is None


def _by_trying_all(
    model: ModelConfig, wanted: dict[str, int], step: StepShape, gpu_bytes: int
) -> float | None:
    """Smallest distance to a working layout of these machines, by trying everything there is."""
    fields = {**ParallelLayout().model_dump(), **wanted}
    ranks = fields["nodes"] * fields["processes_per_node"]
    best = None
    choices = ("none", "selective", "full")
    # an axis that does not divide the ranks cannot work whatever the others are
    sizes = [size for size in range(1, ranks + 1) if ranks % size == 0]
    for axes in itertools.product(sizes, repeat=4):
        for more, recompute in enumerate(choices[choices.index(fields["recompute"]) :]):
            tried = {**fields, **dict(zip(AXES, axes, strict=True)), "recompute": recompute}
            if layout_problems(model, tried, step, gpu_bytes=gpu_bytes):
                continue
            far = sum(abs(math.log2(tried[axis] / fields[axis])) for axis in AXES) + more / 2
            best = far if best is None else min(best, far)
    return best


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.sampled_from([1, 2, 3, 4, 6, 8]),
    axes=st.tuples(*[st.integers(1, 8)] * 4),
    window_tokens=st.sampled_from([48, 64, 256]),
    windows=st.sampled_from([1, 4, 6, 8]),
    gpu_megabytes=st.integers(2, 60),
    recompute=st.sampled_from(["none", "selective", "full"]),
)
def test_the_offered_layout_works_and_none_on_these_machines_is_nearer(
    nodes: int,
    axes: tuple[int, int, int, int],
    window_tokens: int,
    windows: int,
    gpu_megabytes: int,
    recompute: str,
) -> None:
    wanted = {"nodes": nodes, "recompute": recompute, **dict(zip(AXES, axes, strict=True))}
    step = StepShape(window_tokens=window_tokens, windows_per_step=windows)
    room = gpu_megabytes * 1_000_000

    nearest = nearest_layout(SMALL, wanted, step, gpu_bytes=room)
    tried = _by_trying_all(SMALL, wanted, step, room)

    if nearest is None or nearest.nodes != nodes:
        assert tried is None
        return
    assert layout_problems(SMALL, nearest.model_dump(), step, gpu_bytes=room) == ()
    assert memory_per_gpu(SMALL, nearest, step).total <= room
    far = sum(abs(math.log2(getattr(nearest, axis) / wanted[axis])) for axis in AXES)
    choices = ("none", "selective", "full")
    far += (choices.index(nearest.recompute) - choices.index(recompute)) / 2
    assert far == pytest.approx(tried)


@given(st.integers(1, 5000))
def test_divisors_are_all_numbers_that_divide(number: int) -> None:
    assert divisors(number) == tuple(d for d in range(1, number + 1) if number % d == 0)

"""Which layouts can work, why another one cannot, and the nearest one that can.

A layout works when it divides everything it splits and its fullest GPU has the room.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from m1.model.config import (
    LARGEST_CONTEXT,
    LARGEST_NODES,
    RECOMPUTE_CHOICES,
    ModelConfig,
    ParallelLayout,
    Recompute,
)
from m1.model.cost.memory import GPU_BYTES, memory_per_gpu
from m1.model.cost.step import StepShape

AXES = ("tensor", "pipeline", "context", "expert")
LARGEST_GROWTH = 64  # ours: how many times more machines are tried before giving up


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutProblem:
    """One reason why a layout cannot work.

    Args:
        field: of the layout, such as `tensor`.
        value: what it is.
        accepted: what would do.
    """

    field: str
    value: object
    accepted: str


def layout_problems(
    model: ModelConfig,
    wanted: Mapping[str, int | str],
    step: StepShape,
    *,
    gpu_bytes: int = GPU_BYTES,
) -> tuple[LayoutProblem, ...]:
    """Why these fields of a `ParallelLayout` cannot work; empty when they can.

    Memory is looked at last and only for a layout that divides everything.
    """
    fields = {**ParallelLayout().model_dump(), **wanted}
    found = tuple(_division_problems(model, fields, step))
    if found:
        return found
    layout = ParallelLayout.model_validate(fields)
    needed = memory_per_gpu(model, layout, step).total
    if needed <= gpu_bytes:
        return ()
    return (
        LayoutProblem(
            field="gigabytes per GPU",
            value=round(needed / 1e9, 1),
            accepted=f"at most {gpu_bytes / 1e9:g}",
        ),
    )


def _division_problems(
    model: ModelConfig, fields: Mapping[str, int | str], step: StepShape
) -> Iterator[LayoutProblem]:
    ranks = int(fields["nodes"]) * int(fields["processes_per_node"])
    tensor, pipeline, context, expert = (int(fields[axis]) for axis in AXES)
    for axis, value, whole, what in _divisions(model, (tensor, pipeline, context, expert), step):
        if whole % value:
            yield LayoutProblem(
                field=axis, value=fields[axis], accepted=f"a divisor of {whole} {what}"
            )
    if pipeline > model.num_layers:
        yield LayoutProblem(
            field="pipeline", value=pipeline, accepted=f"at most {model.num_layers} layers"
        )
    inner = tensor * pipeline * context
    if ranks % inner:
        yield LayoutProblem(
            field="tensor x pipeline x context", value=inner, accepted=f"a divisor of {ranks} ranks"
        )
    elif step.is_even and step.windows_per_step % (ranks // inner * step.micro_batch_windows):
        yield LayoutProblem(
            field="data x micro_batch_windows",
            value=ranks // inner * step.micro_batch_windows,
            accepted=f"a divisor of {step.windows_per_step} windows per step",
        )
    if ranks % (pipeline * expert):
        yield LayoutProblem(
            field="pipeline x expert",
            value=pipeline * expert,
            accepted=f"a divisor of {ranks} ranks",
        )


def _divisions(
    model: ModelConfig, axes: tuple[int, int, int, int], step: StepShape
) -> tuple[tuple[str, int, int, str], ...]:
    """(axis, divisor, what must divide, its name)."""
    tensor, _pipeline, context, expert = axes
    # A context rank takes an early and a late piece of the window (zig-zag), so 2 x context
    # pieces; the tensor ranks then split the tokens between them (sequence parallelism).
    pieces = (2 * context if context > 1 else 1) * tensor
    return (
        ("tensor", tensor, model.num_heads, "heads"),
        ("tensor", tensor, model.num_key_value_heads, "key/value heads"),
        ("tensor", tensor, model.vocabulary_size, "vocabulary entries"),
        ("expert", expert, model.num_experts, "experts"),
        ("context", pieces, step.window_tokens, "window tokens (2 x context x tensor pieces)"),
    )


def nearest_layout(
    model: ModelConfig,
    wanted: Mapping[str, int | str],
    step: StepShape,
    *,
    gpu_bytes: int = GPU_BYTES,
) -> ParallelLayout | None:
    """The working layout that changes least; None if even many more machines do not help.

    The machines stay as they are unless no layout on them works; then their number is raised
    by the smallest factor of two that helps. Among axes, a change by a factor of two counts
    one; recomputing more counts half; ties go to fewer tensor, then context, then pipeline
    ranks: the order in which the axes cost communication.
    """
    fields = {**ParallelLayout().model_dump(), **wanted}
    growth = 1
    while growth <= LARGEST_GROWTH and int(fields["nodes"]) * growth <= LARGEST_NODES:
        grown = {**fields, "nodes": int(fields["nodes"]) * growth}
        working = (
            candidate
            for candidate in _candidates(model, grown)
            if not layout_problems(model, candidate.model_dump(), step, gpu_bytes=gpu_bytes)
        )
        best = min(working, key=_distance_to(fields), default=None)
        if best is not None:
            return best
        growth *= 2
    return None


def _candidates(model: ModelConfig, fields: Mapping[str, int | str]) -> Iterator[ParallelLayout]:
    """Every layout of these machines that divides heads and experts."""
    ranks = int(fields["nodes"]) * int(fields["processes_per_node"])
    heads = math.gcd(model.num_heads, model.num_key_value_heads, model.vocabulary_size)
    for tensor, pipeline, expert in itertools.product(
        divisors(math.gcd(ranks, heads)),
        [count for count in divisors(ranks) if count <= model.num_layers],
        divisors(math.gcd(ranks, model.num_experts)),
    ):
        if ranks % (tensor * pipeline) or ranks % (pipeline * expert):
            continue
        for context in divisors(ranks // (tensor * pipeline)):
            if context > LARGEST_CONTEXT:
                break
            for recompute in _more_recompute(str(fields["recompute"])):
                yield ParallelLayout(
                    nodes=int(fields["nodes"]),
                    processes_per_node=int(fields["processes_per_node"]),
                    tensor=tensor,
                    pipeline=pipeline,
                    context=context,
                    expert=expert,
                    recompute=recompute,
                )


def _more_recompute(wanted: str) -> tuple[Recompute, ...]:
    """The wanted choice and those that recompute more."""
    names: list[str] = list(RECOMPUTE_CHOICES)
    return RECOMPUTE_CHOICES[names.index(wanted) :]


def divisors(number: int) -> tuple[int, ...]:
    """All divisors of a positive number, smallest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def _distance_to(
    wanted: Mapping[str, int | str],
) -> Callable[[ParallelLayout], tuple[float, int, int, int]]:
    names: list[str] = list(RECOMPUTE_CHOICES)

    def distance(layout: ParallelLayout) -> tuple[float, int, int, int]:
        axes = sum(abs(math.log2(getattr(layout, axis) / int(wanted[axis]))) for axis in AXES)
        more = names.index(layout.recompute) - names.index(str(wanted["recompute"]))
        return (axes + more / 2, layout.tensor, layout.context, layout.pipeline)

    return distance

"""Bytes that one rank sends per optimizer step, by axis of the layout.

Counts what the collectives of the training step must move (ring algorithms: n - 1 of n parts of
a gather or scatter, twice that for an all-reduce), on an inner pipeline rank. Whether they hide
behind computation is not asked. With sequence parallelism the activations' all-reduces of a
tensor group are gathers and scatters along the sequence: they stand under `sequence`; what is
still all-reduced stands under `tensor`.
"""

from dataclasses import asdict, dataclass

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.cost.parameters import (
    count_layers,
    key_value_width,
)
from m1.model.cost.rank import RankParameters, rank_layers, rank_parameters
from m1.model.cost.step import StepShape

FLOAT_BYTES = 4
_ZIG_ZAG_CHUNKS = 2  # a context rank holds an early and a late piece: two states to exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesPerStep:
    """Sent by one rank per optimizer step."""

    tensor: int
    sequence: int
    context: int
    expert: int
    pipeline: int
    data: int

    @property
    def total(self) -> int:
        """Over all axes."""
        return sum(asdict(self).values())


def bytes_per_step(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> BytesPerStep:
    """By axis, for a layout that divides the model; 0 on an axis of one rank."""
    passes = step.micro_batches(layout)
    return BytesPerStep(
        tensor=round(_tensor(model, layout, step, passes)),
        sequence=round(_sequence(model, layout, step) * passes),
        context=round(_context(model, layout, step) * passes),
        expert=round(_expert(model, layout, step) * passes),
        pipeline=round(_pipeline(model, layout, step) * passes),
        data=round(_data(model, layout, step)),
    )


def _others(ranks: int) -> float:
    """Share of a gathered whole that comes from the other ranks."""
    return (ranks - 1) / ranks


def _inner_rank(layout: ParallelLayout) -> int:
    return layout.pipeline // 2


def _holds_head(layout: ParallelLayout) -> bool:
    return _inner_rank(layout) == layout.pipeline - 1


def _inner_layers(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> range:
    return rank_layers(
        model, layout, pipeline_rank=_inner_rank(layout), window_tokens=step.window_tokens
    )


def _inner_parameters(
    model: ModelConfig, layout: ParallelLayout, step: StepShape
) -> RankParameters:
    return rank_parameters(
        model, layout, pipeline_rank=_inner_rank(layout), window_tokens=step.window_tokens
    )


def _layers(model: ModelConfig, layout: ParallelLayout, step: StepShape, kind: str) -> int:
    return count_layers(model, _inner_layers(model, layout, step), kind)


def _forward_passes(layout: ParallelLayout, *, experts: bool) -> int:
    """Forward passes over a layer: one more where it is recomputed."""
    again = layout.recompute == "full" or (experts and layout.recompute == "selective")
    return 2 if again else 1


def _hidden_bytes(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> float:
    """Hidden states of one micro batch on all ranks of one tensor group."""
    return step.rank_tokens(layout) * layout.tensor * model.hidden_size * step.element_bytes


def _sequence(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> float:
    """Gathers before and scatters after the projections of attention.

    A lightning layer gathers its input twice (qkv and gate), a softmax layer once; both scatter
    their output. Backward gathers the inputs again for the weights' gradients, scatters theirs
    and gathers the output's. The embedding scatters, and gathers in backward; the fp32 head
    gathers, and gathers and scatters in backward.
    """
    whole = _hidden_bytes(model, layout, step) * _others(layout.tensor)
    forward = _forward_passes(layout, experts=False)
    lightning = _layers(model, layout, step, "lightning") * (3 * forward + 5)
    softmax = _layers(model, layout, step, "softmax") * (2 * forward + 3)
    embedding = 2 if _inner_rank(layout) == 0 else 0
    head = 3 * FLOAT_BYTES / step.element_bytes if _holds_head(layout) else 0
    return whole * (lightning + softmax + embedding + head)


def _tensor(model: ModelConfig, layout: ParallelLayout, step: StepShape, passes: int) -> float:
    """Mean squares of the norm over all heads, and gradients of what every rank holds whole.

    The cross entropy over a split vocabulary takes a maximum and two sums per token.
    """
    window = step.rank_tokens(layout) * layout.tensor
    reductions = _layers(model, layout, step, "lightning") * (
        _forward_passes(layout, experts=False) + 1
    )
    reductions += 3 if _holds_head(layout) else 0
    replicated = _inner_parameters(model, layout, step).replicated
    numbers = window * reductions * passes + replicated
    return 2 * _others(layout.tensor) * FLOAT_BYTES * numbers


def _context(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> float:
    """Keys and values of softmax layers; fp32 states of lightning layers; backward the same."""
    ranks, forward = layout.context, _forward_passes(layout, experts=False)
    window = step.window_tokens * step.micro_batch_windows
    keys = 2 * window * key_value_width(model) / layout.tensor * step.element_bytes
    pieces = _ZIG_ZAG_CHUNKS * ranks * step.micro_batch_windows
    states = FLOAT_BYTES * pieces * model.attention_width * model.head_width / layout.tensor
    softmax, lightning = (
        _layers(model, layout, step, "softmax"),
        _layers(model, layout, step, "lightning"),
    )
    return _others(ranks) * (forward + 1) * (softmax * keys + lightning * states)


def _expert(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> float:
    """Each token copy travels to its expert and back, forward and backward."""
    rows = step.rank_tokens(layout) * model.experts_per_token
    there = rows * model.hidden_size * step.element_bytes * _others(layout.expert)
    layers = len(_inner_layers(model, layout, step))
    return 2 * there * layers * (_forward_passes(layout, experts=True) + 1)


def _pipeline(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> float:
    """Hidden states to the next rank, their gradient to the one before."""
    if layout.pipeline == 1:
        return 0.0
    neighbours = 2 if layout.pipeline > 2 else 1  # of two ranks each has a single neighbour
    return neighbours * _hidden_bytes(model, layout, step) / layout.tensor


def _data(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> float:
    """Distributed optimizer: fp32 gradients scattered, new parameters gathered."""
    own = _inner_parameters(model, layout, step)
    element = FLOAT_BYTES + step.element_bytes
    expert_copies = max(layout.world_size // (layout.pipeline * layout.expert), 1)
    dense = own.dense * _others(layout.data * layout.context)
    return element * (dense + own.experts * _others(expert_copies))

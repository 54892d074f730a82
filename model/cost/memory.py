"""Bytes on the fullest GPU of a layout: weights, gradients, optimizer, activations.

Parameters, gradients and optimizer state are exact. Activations are what autograd keeps, counted
tensor by tensor from the modules of `m1.model` (tests hold the counts against torch), plus the
working memory of one layer. Tokens are taken to be spread evenly over experts.

Not in it: the allocator's fragmentation, communication buffers, the CUDA context. They are why
`GPU_BYTES` is the 80 GB of the data sheet and not the 85 that the driver reports.

Letters in the formulas: D hidden, A all heads together, G all key heads, F inside an expert,
k experts per token, H heads, C tokens of a chunk, W head width; e bytes of an activation.
"""

import math
from dataclasses import dataclass

from m1.model.config import RECOMPUTE_CHOICES, ModelConfig, ParallelLayout, Recompute
from m1.model.cost.parameters import key_value_width
from m1.model.cost.rank import rank_layers, rank_parameters
from m1.model.cost.step import StepShape

GPU_BYTES = 80_000_000_000  # H800 and H100 of 80 GB
GRADIENT_BYTES = 4  # fp32 accumulation
FLOAT_BYTES = 4
LIGHTNING_CHUNK_TOKENS = 128  # chunk of the torch twin, which keeps the scores of every chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPerGpu:
    """Bytes on the fullest GPU of the layout."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; the allocator's fragmentation and communication buffers are not in it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_per_gpu(
    model: ModelConfig,
    layout: ParallelLayout,
    step: StepShape,
    *,
    recompute: Recompute | None = None,
) -> MemoryPerGpu:
    """Bytes by kind on the pipeline rank that needs most.

    Args:
        model: shape of the model.
        layout: one that divides the model (`m1.model.cost.layouts` says whether).
        step: the batch.
        recompute: instead of the layout's own choice.
    """
    choice = recompute or layout.recompute
    return max(
        (_rank_memory(model, layout, step, choice, rank) for rank in range(layout.pipeline)),
        key=lambda memory: memory.total,
    )


def activations_by_recompute(
    model: ModelConfig, layout: ParallelLayout, step: StepShape
) -> dict[str, int]:
    """Activation bytes of the fullest GPU under each recompute choice."""
    return {
        choice: memory_per_gpu(model, layout, step, recompute=choice).activations
        for choice in RECOMPUTE_CHOICES
    }


def _rank_memory(
    model: ModelConfig, layout: ParallelLayout, step: StepShape, choice: Recompute, rank: int
) -> MemoryPerGpu:
    own = rank_parameters(model, layout, pipeline_rank=rank, window_tokens=step.window_tokens)
    # The distributed optimizer splits state over the ranks that hold the same parameters.
    dense_copies = layout.data * layout.context
    expert_copies = layout.world_size // (layout.pipeline * layout.expert)
    states = own.dense / dense_copies + own.experts / max(expert_copies, 1)
    return MemoryPerGpu(
        weights=step.element_bytes * (own.dense + own.experts),
        gradients=GRADIENT_BYTES * (own.dense + own.experts),
        optimizer=math.ceil(step.optimizer_bytes * states),
        activations=math.ceil(_activation_bytes(model, layout, step, choice, rank)),
    )


def _activation_bytes(
    model: ModelConfig, layout: ParallelLayout, step: StepShape, choice: Recompute, rank: int
) -> float:
    """Kept by every micro batch in flight, and one layer at work: what it keeps, with gradients.

    Under 1F1B the first pipeline rank has as many micro batches in flight as there are ranks,
    the last one has one; that one also holds the logits.
    """
    tokens = step.rank_tokens(layout)
    in_flight = min(layout.pipeline - rank, step.micro_batches(layout))
    kept = tokens * in_flight * kept_bytes_per_token(model, layout, step, choice, rank)
    kinds = {
        model.layer_kind(layer)
        for layer in rank_layers(
            model, layout, pipeline_rank=rank, window_tokens=step.window_tokens
        )
    }
    at_work = 2 * tokens * max(_layer_bytes(model, step, kind, "none") for kind in kinds)
    head = head_bytes(model, layout, step) if rank == layout.pipeline - 1 else 0.0
    return kept + at_work + head


def kept_bytes_per_token(
    model: ModelConfig, layout: ParallelLayout, step: StepShape, choice: Recompute, rank: int
) -> float:
    """What the layers of a pipeline rank keep for backward, per token of the rank."""
    return sum(
        _layer_bytes(model, step, model.layer_kind(layer), choice)
        for layer in rank_layers(
            model, layout, pipeline_rank=rank, window_tokens=step.window_tokens
        )
    )


def _layer_bytes(model: ModelConfig, step: StepShape, kind: str, choice: Recompute) -> float:
    """Per token: everything; without the experts' inside; or the layer's input alone."""
    hidden = model.hidden_size * step.element_bytes
    if choice == "full":
        return hidden
    attention = (
        _lightning_bytes(model, step) if kind == "lightning" else _softmax_bytes(model, step)
    )
    norms = 3 * hidden + 2 * FLOAT_BYTES  # input of both, output of the first, inverse of both
    if choice == "selective":
        return norms + attention + hidden  # the experts' input
    return norms + attention + _experts_bytes(model, step)


def _lightning_bytes(model: ModelConfig, step: StepShape) -> float:
    """A (10 e + 4) around the core, H C e + 4 A (3 + W / C) in the torch twin's core.

    Around: q, k, v before and after SiLU (6), gate, normed, scaled and gated output (4), the raw
    output in fp32. The core keeps the scores of every chunk, q and k decayed (under bf16 also v)
    in fp32, and the states between chunks. A fused kernel keeps none of them.
    """
    width, chunk = model.attention_width, LIGHTNING_CHUNK_TOKENS
    around = width * (10 * step.element_bytes + FLOAT_BYTES) + FLOAT_BYTES
    scores = model.num_heads * chunk * step.element_bytes
    copies = 3 if step.precision == "bf16" else 2
    states = FLOAT_BYTES * width * (copies + model.head_width / chunk)
    return around + scores + states


def _softmax_bytes(model: ModelConfig, step: StepShape) -> float:
    """q, k, v as projected, q and k rotated, the output; one fp32 number per head and token."""
    width, keys = model.attention_width, key_value_width(model)
    return (3 * width + 3 * keys) * step.element_bytes + FLOAT_BYTES * model.num_heads


def _experts_bytes(model: ModelConfig, step: StepShape) -> float:
    """Router input and, per chosen expert, rows in, gate and up, their product's factors, out."""
    inside = 4 * model.expert_hidden_size + 3 * model.hidden_size
    routing = 8 * model.num_experts + 64 * model.experts_per_token  # int64 ids, fp32 scores
    return (model.hidden_size + model.experts_per_token * inside) * step.element_bytes + routing


def head_bytes(model: ModelConfig, layout: ParallelLayout, step: StepShape) -> float:
    """Of the last pipeline rank: hidden states and logits in fp32, and an fp32 copy of the head.

    Beside the logits stands their gradient, unless it is made in place, as Megatron's cross
    entropy over a split vocabulary does. The copy of a bf16 head comes with its gradient.
    """
    copies = 1 if layout.tensor > 1 else 2
    per_token = 2 * model.hidden_size + copies * model.vocabulary_size
    weight = model.vocabulary_size * model.hidden_size / layout.tensor
    cast = 2 * weight if step.precision == "bf16" else 0.0
    return FLOAT_BYTES * (step.rank_tokens(layout) * per_token + cast)

"""What a run will need, before it is spent: parameters, FLOPs, memory, GPU-hours, money, bytes.

Arithmetic on plain numbers; imports no torch. Counts of parameters are exact; FLOPs count matrix
products only (a multiply-add is 2); memory and bytes are upper estimates by the formulas below.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from m1.model.config import ModelConfig, ParallelLayout

PRICE_PER_GPU_HOUR = 2.07  # US dollars: $534,700 / (512 GPUs x 3 weeks), M1 abstract; facts 6.8
LIGHTNING_CHUNK_TOKENS = 64  # chunk of the training kernel: work inside a chunk is quadratic
WEIGHT_BYTES = 2  # bf16
GRADIENT_BYTES = 4  # fp32 accumulation
OPTIMIZER_BYTES = 12  # fp32 master weight and two Adam moments, spread over data-parallel ranks
TOKEN_BYTES = 4  # ours: token ids are stored as 32-bit integers
BACKWARD_FACTOR = 3  # forward plus a backward of twice its work


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters by part, summed over layers.

    `active` counts what one token uses as MiniMax counts it: chosen experts, attention, routers
    and norms, without embedding and head (facts sheet section 1.2).
    """

    lightning: int
    softmax: int
    routers: int
    experts: int
    active_experts: int
    norms: int
    embedding: int
    head: int

    @property
    def dense(self) -> int:
        """All but experts, embedding and head."""
        return self.lightning + self.softmax + self.routers + self.norms

    @property
    def total(self) -> int:
        """Every parameter."""
        return self.dense + self.experts + self.embedding + self.head

    @property
    def active(self) -> int:
        """Parameters that one token uses, without embedding and head."""
        return self.dense + self.active_experts


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Exact counts; 456,089,655,296 in total and 45,944,920,064 active for the defaults."""
    hidden, width = model.hidden_size, model.attention_width
    softmax_layers = _softmax_layers(model)
    lightning_layers = model.num_layers - softmax_layers
    kv_width = model.num_key_value_heads * model.head_width
    expert = 3 * hidden * model.expert_hidden_size
    return ParameterCounts(
        lightning=lightning_layers * (5 * hidden * width + width),
        softmax=softmax_layers * 2 * hidden * (width + kv_width),
        routers=model.num_layers * model.num_experts * hidden,
        experts=model.num_layers * model.num_experts * expert,
        active_experts=model.num_layers * model.experts_per_token * expert,
        norms=(2 * model.num_layers + 1) * hidden,
        embedding=model.vocabulary_size * hidden,
        head=model.vocabulary_size * hidden,
    )


def _softmax_layers(model: ModelConfig) -> int:
    return sum(model.layer_kind(layer) == "softmax" for layer in range(model.num_layers))


def decode_flops_per_token(model: ModelConfig, *, context_tokens: float) -> float:
    """FLOPs to produce one token that attends to `context_tokens` tokens.

    Twice the active parameters and the head, 4 H W per attended token and softmax layer, and
    4 H W^2 per lightning layer (add to the state, read it) whatever the length.
    """
    counts = count_parameters(model)
    softmax_layers = _softmax_layers(model)
    lightning_layers = model.num_layers - softmax_layers
    products = 2.0 * (counts.active - counts.norms + counts.head)
    attention = 4.0 * softmax_layers * model.attention_width * context_tokens
    recurrence = 4.0 * lightning_layers * model.attention_width * model.head_width
    return products + attention + recurrence


def prefill_flops_per_token(model: ModelConfig, *, window_tokens: int) -> float:
    """Mean FLOPs per token of a forward over a whole window: on average half of it is attended.

    Lightning layers pay the products inside a chunk on top of the recurrence.
    """
    lightning_layers = model.num_layers - _softmax_layers(model)
    chunk = min(LIGHTNING_CHUNK_TOKENS, window_tokens)
    inside = 4.0 * lightning_layers * model.attention_width * chunk
    mean_context = (window_tokens + 1) / 2
    return decode_flops_per_token(model, context_tokens=mean_context) + inside


def training_flops_per_token(model: ModelConfig, *, window_tokens: int) -> float:
    """Mean FLOPs per token of forward and backward; recomputation is not counted."""
    return BACKWARD_FACTOR * prefill_flops_per_token(model, window_tokens=window_tokens)


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
    model: ModelConfig, layout: ParallelLayout, *, window_tokens: int
) -> MemoryPerGpu:
    """Bytes by kind for one window per micro-batch.

    Dense parameters are split by tensor and pipeline ranks, experts by pipeline and expert ranks,
    embedding and head by tensor ranks (the fullest pipeline rank holds one of them, both if there
    is one rank). Optimizer state is further split over the ranks that hold the same parameters.
    """
    counts = count_parameters(model)
    stage_share = math.ceil(model.num_layers / layout.pipeline) / model.num_layers
    ends = counts.embedding + (counts.head if layout.pipeline == 1 else 0)
    dense = (counts.dense * stage_share + ends) / layout.tensor
    experts = counts.experts * stage_share / layout.expert
    dense_copies = layout.data * layout.context
    expert_copies = max(layout.world_size / (layout.pipeline * layout.expert), 1)
    optimizer = OPTIMIZER_BYTES * (dense / dense_copies + experts / expert_copies)
    return MemoryPerGpu(
        weights=math.ceil(WEIGHT_BYTES * (dense + experts)),
        gradients=math.ceil(GRADIENT_BYTES * (dense + experts)),
        optimizer=math.ceil(optimizer),
        activations=_activation_bytes(model, layout, window_tokens),
    )


def _activation_bytes(model: ModelConfig, layout: ParallelLayout, window_tokens: int) -> int:
    """With full recomputation: layer inputs + one layer's work + fp32 logits and their gradient.

    Layer inputs: tokens x D x 2 bytes for every layer of the rank and every micro-batch in flight
    (as many as pipeline ranks). One layer: q, k, v, gate, output (5 H W) and per chosen expert
    gate, up, product and output (3 F + D), in bf16, each with its gradient.
    """
    tokens = math.ceil(window_tokens / layout.context)
    layers = math.ceil(model.num_layers / layout.pipeline)
    inputs = tokens * model.hidden_size * WEIGHT_BYTES * layers * layout.pipeline
    expert_width = 3 * model.expert_hidden_size + model.hidden_size
    inside = 5 * model.attention_width + model.experts_per_token * expert_width
    work = 2 * tokens * inside * WEIGHT_BYTES
    logits = 2 * tokens * model.vocabulary_size * 4
    return math.ceil((inputs + work + logits) / layout.tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """What one stage processes.

    Args:
        name: of the stage.
        tokens: trained on.
        window_tokens: length of a training window.
        generated_tokens: sampled by the stage itself (reinforce), counted at half the window.
    """

    name: str
    tokens: int
    window_tokens: int
    generated_tokens: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.generated_tokens < 0 or self.window_tokens < 1:
            raise ValueError(
                f"stage {self.name}: tokens = {self.tokens}, generated_tokens = "
                f"{self.generated_tokens} (accepted: >= 0), window_tokens = {self.window_tokens} "
                "(accepted: >= 1)"
            )

    def flops(self, model: ModelConfig) -> float:
        """FLOPs of the whole stage."""
        training = self.tokens * training_flops_per_token(model, window_tokens=self.window_tokens)
        context = self.window_tokens / 2
        return training + self.generated_tokens * decode_flops_per_token(
            model, context_tokens=context
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer of `m1 plan`."""

    parameters: dict[str, int]
    memory_per_gpu: dict[str, int]
    flops_per_token: dict[str, dict[str, float]]
    gpu_hours: dict[str, float]
    cost: dict[str, float]
    store_bytes: int
    layout: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values under stable keys (design section 6)."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """How fast a GPU really is and what it costs.

    Args:
        peak_tflops: of the GPU in the type used (H800 and H100 bf16 dense: 989).
        utilisation: share of the peak that is reached, in (0, 1].
        per_gpu_hour: US dollars.
    """

    peak_tflops: float = 989.0
    utilisation: float = 0.3  # ours: MiniMax publishes no training figure (facts 2.5)
    per_gpu_hour: float = PRICE_PER_GPU_HOUR

    def __post_init__(self) -> None:
        if self.peak_tflops <= 0 or not 0 < self.utilisation <= 1 or self.per_gpu_hour < 0:
            raise ValueError(
                f"peak_tflops = {self.peak_tflops} (accepted: > 0), utilisation = "
                f"{self.utilisation} (accepted: in (0, 1]), per_gpu_hour = {self.per_gpu_hour} "
                "(accepted: >= 0)"
            )

    def hours(self, flops: float) -> float:
        """GPU-hours for this work."""
        return flops / (self.peak_tflops * 1e12 * self.utilisation) / 3600


def plan(
    model: ModelConfig,
    layout: ParallelLayout,
    *,
    stages: Sequence[StageWork],
    prices: Prices | None = None,
) -> Plan:
    """Everything for these stages, in order; memory is that of the longest window."""
    prices = prices or Prices()
    counts = count_parameters(model)
    memory = memory_per_gpu(
        model, layout, window_tokens=max((stage.window_tokens for stage in stages), default=1)
    )
    hours = {stage.name: prices.hours(stage.flops(model)) for stage in stages}
    cost = {name: value * prices.per_gpu_hour for name, value in hours.items()}
    return Plan(
        parameters={"total": counts.total, "active": counts.active},
        memory_per_gpu={**asdict(memory), "total": memory.total},
        flops_per_token={stage.name: _flops_of(model, stage) for stage in stages},
        gpu_hours={**hours, "total": sum(hours.values())},
        cost={**cost, "total": sum(cost.values())},
        store_bytes=store_bytes(model, stages),
        layout={**layout.model_dump(), "world_size": layout.world_size, "data": layout.data},
    )


def _flops_of(model: ModelConfig, stage: StageWork) -> dict[str, float]:
    window = stage.window_tokens
    return {
        "training": training_flops_per_token(model, window_tokens=window),
        "prefill": prefill_flops_per_token(model, window_tokens=window),
        "decode": decode_flops_per_token(model, context_tokens=window),
    }


def store_bytes(model: ModelConfig, stages: Sequence[StageWork]) -> int:
    """One full checkpoint per stage (weights and optimizer state), and the stages' tokens."""
    checkpoint = count_parameters(model).total * (WEIGHT_BYTES + OPTIMIZER_BYTES)
    tokens = sum(stage.tokens + stage.generated_tokens for stage in stages)
    return len(stages) * checkpoint + tokens * TOKEN_BYTES

"""Everything `m1 plan` answers, put together: per stage and for the whole run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.cost.communication import bytes_per_step
from m1.model.cost.compute_curve import CurvePoint, compute_curve
from m1.model.cost.flops import (
    decode_flops_per_token,
    flops_table,
    prefill_flops_per_token,
    training_flops_per_token,
)
from m1.model.cost.memory import activations_by_recompute, memory_per_gpu
from m1.model.cost.parameters import count_parameters
from m1.model.cost.step import StepShape

PRICE_PER_GPU_HOUR = 2.07  # US dollars: $534,700 / (512 GPUs x 3 weeks), M1 abstract; facts 6.8
TOKEN_BYTES = 4  # ours: token ids are stored as 32-bit integers
KEPT_CHECKPOINTS = 2  # what a stage keeps until `m1 gc`: `m1.stages.context`


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """What one stage processes.

    Args:
        name: of the stage.
        steps: between which it may save a checkpoint.
        tokens: trained on.
        step: the batch of one optimizer step.
        layout: of its job.
        generated_tokens: sampled by the stage itself (reinforce), counted at half the window.
        checkpoint_every_steps: as the preset has it.
    """

    name: str
    steps: int
    tokens: int
    step: StepShape
    layout: ParallelLayout = field(default_factory=ParallelLayout)
    generated_tokens: int = 0
    checkpoint_every_steps: int = 1

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.generated_tokens < 0 or self.steps < 1:
            raise ValueError(
                f"stage {self.name}: tokens = {self.tokens}, generated_tokens = "
                f"{self.generated_tokens} (accepted: >= 0), steps = {self.steps} (accepted: >= 1)"
            )

    def flops(self, model: ModelConfig) -> float:
        """FLOPs of the whole stage; recomputation is not counted."""
        window = self.step.window_tokens
        training = self.tokens * training_flops_per_token(model, window_tokens=window)
        sampling = decode_flops_per_token(model, context_tokens=window / 2)
        return training + self.generated_tokens * sampling


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer of `m1 plan`; `memory_per_gpu` is that of the stage that needs most."""

    parameters: dict[str, int]
    memory_per_gpu: dict[str, int]
    flops_per_token: dict[str, dict[str, float]]
    gpu_hours: dict[str, float]
    cost: dict[str, float]
    store_bytes: int
    layout: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    flops_by_length: list[dict[str, float]]
    compute_curve: dict[str, list[dict[str, float]]]
    prices: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values under stable keys (design section 6)."""
        return asdict(self)


def plan(
    model: ModelConfig,
    layout: ParallelLayout,
    *,
    stages: Sequence[StageWork],
    prices: Prices | None = None,
) -> Plan:
    """Everything for these stages, in order; `layout` is the one that most of them share."""
    prices = prices or Prices()
    counts = count_parameters(model)
    hours = {stage.name: prices.hours(stage.flops(model)) for stage in stages}
    cost = {name: value * prices.per_gpu_hour for name, value in hours.items()}
    by_stage = {stage.name: _stage_answer(model, stage) for stage in stages}
    memories = [answer["memory_per_gpu"] for answer in by_stage.values()]
    return Plan(
        parameters={"total": counts.total, "active": counts.active},
        memory_per_gpu=max(memories, key=lambda memory: memory["total"], default={}),
        flops_per_token={stage.name: _flops_of(model, stage) for stage in stages},
        gpu_hours={**hours, "total": sum(hours.values())},
        cost={**cost, "total": sum(cost.values())},
        store_bytes=store_bytes(model, stages),
        layout=_layout_answer(layout),
        stages=by_stage,
        flops_by_length=[asdict(row) for row in flops_table(model)],
        compute_curve=_curves(model),
        prices=asdict(prices),
    )


def _stage_answer(model: ModelConfig, stage: StageWork) -> dict[str, Any]:
    memory = memory_per_gpu(model, stage.layout, stage.step)
    sent = bytes_per_step(model, stage.layout, stage.step)
    return {
        "layout": _layout_answer(stage.layout),
        "memory_per_gpu": {**asdict(memory), "total": memory.total},
        "activations_by_recompute": activations_by_recompute(model, stage.layout, stage.step),
        "communication_bytes_per_step": {**asdict(sent), "total": sent.total},
        "pipeline_idle_share": pipeline_idle_share(stage),
    }


def pipeline_idle_share(stage: StageWork) -> float:
    """Share of a step in which a pipeline rank waits, under 1F1B: (p - 1) / (m + p - 1)."""
    waiting = stage.layout.pipeline - 1
    return waiting / (stage.step.micro_batches(stage.layout) + waiting)


def _layout_answer(layout: ParallelLayout) -> dict[str, Any]:
    return {**layout.model_dump(), "world_size": layout.world_size, "data": layout.data}


def _flops_of(model: ModelConfig, stage: StageWork) -> dict[str, float]:
    window = stage.step.window_tokens
    return {
        "training": training_flops_per_token(model, window_tokens=window),
        "prefill": prefill_flops_per_token(model, window_tokens=window),
        "decode": decode_flops_per_token(model, context_tokens=window),
    }


def _curves(model: ModelConfig) -> dict[str, list[dict[str, float]]]:
    return {
        "causal": [_point(point) for point in compute_curve(model, accounting="causal")],
        "figure": [_point(point) for point in compute_curve(model, accounting="figure")],
    }


def _point(point: CurvePoint) -> dict[str, float]:
    return {**asdict(point), "ratio": point.ratio}


def checkpoint_bytes(model: ModelConfig, step: StepShape) -> int:
    """Of one training checkpoint: weights and optimizer state."""
    return count_parameters(model).total * (step.element_bytes + step.optimizer_bytes)


def store_bytes(model: ModelConfig, stages: Sequence[StageWork]) -> int:
    """What the run leaves before `m1 gc`.

    Per stage the weights it hands over and the checkpoints it keeps; and the tokens of all.
    """
    total = count_parameters(model).total
    weights = sum(total * stage.step.element_bytes for stage in stages)
    checkpoints = KEPT_CHECKPOINTS * sum(checkpoint_bytes(model, s.step) for s in stages)
    tokens = sum(stage.tokens + stage.generated_tokens for stage in stages)
    return weights + checkpoints + tokens * TOKEN_BYTES

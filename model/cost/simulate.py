"""`m1 plan --simulate`: every stage of a run on machines that break, with percentiles."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from m1.model.config import ModelConfig
from m1.model.cost.failures import (
    LLAMA3_NODE_FAILURES_PER_YEAR,
    SECONDS_PER_YEAR,
    Floats,
    Hazards,
    Job,
    Runs,
    best_interval_steps,
    daly_interval_seconds,
    draw_runs,
    expected_seconds,
    young_interval_seconds,
)
from m1.model.cost.plan import Prices, StageWork, checkpoint_bytes

PERCENTILES = (5, 50, 95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Where the run happens.

    Args:
        node_failures_per_year: of one machine.
        restart_seconds: noticing, replacing, starting; reading the checkpoint comes on top.
        store_bytes_per_second: of all machines together; None: `NODE_STORE_BYTES_PER_SECOND` each.
        trials: how many runs are drawn.
        seed: of the drawing.
    """

    node_failures_per_year: float = LLAMA3_NODE_FAILURES_PER_YEAR
    restart_seconds: float = 600.0  # ours
    store_bytes_per_second: float | None = None
    trials: int = 1000
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("node_failures_per_year", "restart_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} (accepted: > 0)")
        bandwidth = self.store_bytes_per_second
        if bandwidth is not None and bandwidth <= 0:
            raise ValueError(f"store_bytes_per_second = {bandwidth} (accepted: > 0)")
        if self.trials < 1 or self.seed < 0:
            raise ValueError(
                f"trials = {self.trials} (accepted: >= 1), seed = {self.seed} (accepted: >= 0)"
            )


NODE_STORE_BYTES_PER_SECOND = 1e9  # ours: Llama 3's store gave 2 TB/s to some 2,000 machines


def hazards_of(model: ModelConfig, stage: StageWork, circumstances: Circumstances) -> Hazards:
    """Failure rate, checkpoint time and restart time of one stage's job."""
    nodes = stage.layout.nodes
    bandwidth = circumstances.store_bytes_per_second or nodes * NODE_STORE_BYTES_PER_SECOND
    transfer = checkpoint_bytes(model, stage.step) / bandwidth
    return Hazards(
        failures_per_second=nodes * circumstances.node_failures_per_year / SECONDS_PER_YEAR,
        checkpoint_seconds=transfer,
        restart_seconds=circumstances.restart_seconds + transfer,
    )


def job_of(model: ModelConfig, stage: StageWork, prices: Prices) -> Job:
    """The stage as equal steps, at the speed that `prices` assumes."""
    seconds = prices.hours(stage.flops(model)) * 3600 / stage.layout.world_size
    return Job(steps=stage.steps, step_seconds=seconds / stage.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class _DrawnStage:
    """One stage, drawn many times at its best checkpoint interval."""

    work: StageWork
    job: Job
    hazards: Hazards
    every_steps: int
    runs: Runs

    @property
    def gpu_seconds(self) -> Floats:
        """Of each run."""
        return self.runs.seconds * self.work.layout.world_size


def simulate(
    model: ModelConfig,
    stages: Sequence[StageWork],
    *,
    circumstances: Circumstances | None = None,
    prices: Prices | None = None,
) -> dict[str, Any]:
    """Expected time, effective share and money of each stage and of all, as plain values.

    Every stage is drawn at its best checkpoint interval; what the preset's own interval and
    those of Young and Daly would take on average stands beside it.

    Raises:
        ValueError: a job that hardly gets anywhere.
    """
    circumstances, prices = circumstances or Circumstances(), prices or Prices()
    generator = np.random.default_rng(circumstances.seed)
    drawn = [_draw_stage(model, work, circumstances, prices, generator) for work in stages]
    return {
        "circumstances": asdict(circumstances),
        "stages": {stage.work.name: _stage_answer(stage, prices) for stage in drawn},
        "total": _spread(drawn, prices),
    }


def _draw_stage(
    model: ModelConfig,
    work: StageWork,
    circumstances: Circumstances,
    prices: Prices,
    generator: np.random.Generator,
) -> _DrawnStage:
    job, hazards = job_of(model, work, prices), hazards_of(model, work, circumstances)
    every = best_interval_steps(job, hazards)
    trials = circumstances.trials
    runs = draw_runs(job, hazards, every_steps=every, trials=trials, generator=generator)
    return _DrawnStage(work=work, job=job, hazards=hazards, every_steps=every, runs=runs)


def _stage_answer(stage: _DrawnStage, prices: Prices) -> dict[str, Any]:
    return {
        "checkpoint": _checkpoint_answer(stage),
        **_spread([stage], prices),
        "failures": float(stage.runs.failures.mean()),
    }


def _checkpoint_answer(stage: _DrawnStage) -> dict[str, Any]:
    job, hazards = stage.job, stage.hazards
    intervals = {
        "best": stage.every_steps,
        "young": _in_steps(young_interval_seconds(hazards), job),
        "daly": _in_steps(daly_interval_seconds(hazards), job),
        "preset": min(stage.work.checkpoint_every_steps, job.steps),
    }
    hours = expected_seconds(job, hazards, list(intervals.values())) / 3600
    return {
        "seconds": hazards.checkpoint_seconds,
        "mean_hours_between_failures": hazards.mean_seconds_between_failures / 3600,
        "every_steps": intervals,
        "every_seconds": {name: every * job.step_seconds for name, every in intervals.items()},
        "expected_hours": dict(zip(intervals, hours.tolist(), strict=True)),
    }


def _in_steps(seconds: float, job: Job) -> int:
    """The nearest interval that the job can have."""
    return max(1, min(round(seconds / job.step_seconds), job.steps))


def _spread(stages: Sequence[_DrawnStage], prices: Prices) -> dict[str, Any]:
    """Of these stages one after the other."""
    seconds = sum((stage.runs.seconds for stage in stages), np.zeros(1))
    gpu_seconds = sum((stage.gpu_seconds for stage in stages), np.zeros(1))
    useful = sum(stage.job.seconds for stage in stages)
    return {
        "hours": _percentiles(seconds / 3600),
        "effective_share": _percentiles(useful / seconds if useful else np.ones(1)),
        "cost": _percentiles(gpu_seconds / 3600 * prices.per_gpu_hour),
    }


def _percentiles(values: Floats) -> dict[str, float]:
    drawn = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return {"mean": float(values.mean()), **drawn}

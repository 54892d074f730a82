"""The one training loop of pretrain, sft and extend: batches in, steps, checkpoints, metrics.

A step's batch is a pure function of its number, so the cursor of the data is the step itself.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from m1.data_recipes.pack import TokenBatch
from m1.infra.errors import PreemptedError
from m1.stages.context import StageContext
from m1.stages.settings import TrainSettings
from m1.stages.training.checkpoint_format import load_training, save_training
from m1.stages.training.guard import Guard, Verdict
from m1.stages.training.measures import flops_used, peak_memory_bytes, utilisation
from m1.stages.training.schedule import learning_rate
from m1.stages.training.session import agree, check_batch, check_finite, data_rank
from m1.stages.training.trainer import MicroBatch, StepReport, Trainer

GUARD_FILE = "guard.json"
BatchOf = Callable[[int, int, int], TokenBatch]  # (step, rank, world) -> this rank's windows


@dataclass(slots=True, kw_only=True)
class Cursor:
    """How far a stage has come."""

    step: int = 0
    tokens: int = 0


def resume_training(context: StageContext, trainer: Trainer) -> Cursor:
    """Load the newest intact checkpoint of this fingerprint, if there is one."""
    found = context.resume()
    if found is None:
        return Cursor()
    record, directory = found
    load_training(trainer, directory / "state")
    return Cursor(step=record.step, tokens=record.tokens)


def save_checkpoint(context: StageContext, trainer: Trainer, cursor: Cursor) -> None:
    """Write and upload a checkpoint from which `resume_training` goes on exactly."""
    context.report(phase="saving")
    check_finite(trainer.model)
    save_training(trainer, context.checkpoint_directory(cursor.step) / "state")
    context.commit_checkpoint(cursor.step, cursor.tokens)
    context.report(phase="training")


def to_micro_batches(batch: TokenBatch, count: int) -> list[MicroBatch]:
    """Split a rank's windows into micro batches on the device of the model."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    whole = {
        "tokens_BT": batch.tokens_BT[:, :-1],
        "targets_BT": batch.tokens_BT[:, 1:],
        "document_ids_BT": batch.document_ids_BT[:, :-1],
        "loss_mask_BT": batch.loss_mask_BT,
    }
    parts = {name: tensor.to(device).chunk(count) for name, tensor in whole.items()}
    return [
        {name: tensors[index].contiguous() for name, tensors in parts.items()}
        for index in range(count)
    ]


def train(
    context: StageContext, trainer: Trainer, settings: TrainSettings, batch_of: BatchOf
) -> Cursor:
    """Train to the last step.

    Raises:
        PreemptedError: asked to stop; the step was finished and saved first.
        StageFailedError: the training went wrong more often than the settings allow.
    """
    count = check_batch(settings)
    rank, world = data_rank()
    cursor, guard = resume_training(context, trainer), restore_guard(context, settings)
    context.report(phase="training", step=cursor.step, steps=settings.steps)
    while cursor.step < settings.steps:
        started = time.monotonic()
        rate = learning_rate(settings, cursor.step)
        number = guard.batch_number(cursor.step, steps=settings.steps)
        batches = to_micro_batches(batch_of(number, rank, world), count)
        report = trainer.step(
            batches,
            learning_rate=rate,
            judge=guard.judge,
            with_layer_norms=is_logged(settings, cursor.step + 1),
        )
        if not report.was_applied:
            _pass_over(context, trainer, guard, cursor, report)
            continue
        cursor.step += 1
        cursor.tokens += settings.windows_per_step * settings.window_tokens
        log_step(context, trainer, cursor, report, (rate, time.monotonic() - started))
        _save_or_stop(context, trainer, settings, cursor, guard)
    return cursor


def restore_guard(context: StageContext, settings: TrainSettings) -> Guard:
    """The guard as the checkpoint that this attempt resumed from left it."""
    guard, stored = Guard.of(settings), context.carried(GUARD_FILE)
    if stored is not None:
        guard.restore(json.loads(stored.read_text()))
    return guard


def _pass_over(
    context: StageContext, trainer: Trainer, guard: Guard, cursor: Cursor, report: StepReport
) -> None:
    """Record a bad batch; go back to the last checkpoint if there were too many in a row."""
    context.metric(
        event=str(report.verdict),
        step=cursor.step,
        bad_loss=finite_or_text(report.loss),
        bad_gradient_norm=finite_or_text(report.gradient_norm),
    )
    if report.verdict is not Verdict.ROLL_BACK:
        return
    found = context.newest_checkpoint()
    step = cursor.step
    if found is not None:
        record, directory = found
        load_training(trainer, directory / "state")
        cursor.step, cursor.tokens = record.step, record.tokens
    # Without a checkpoint there is nothing bad in the weights either: only good batches moved them.
    guard.rolled_back(step=step, back_to=cursor.step)


def finite_or_text(value: float) -> float | str:
    """A number that JSON can hold, or its name."""
    return value if math.isfinite(value) else str(value)


def _save_or_stop(
    context: StageContext,
    trainer: Trainer,
    settings: TrainSettings,
    cursor: Cursor,
    guard: Guard,
) -> None:
    stop = agree(context.stop.is_set)
    is_last = cursor.step == settings.steps
    if stop or (cursor.step % settings.checkpoint_every_steps == 0 and not is_last):
        context.write_output_json(GUARD_FILE, guard.to_json())
        save_checkpoint(context, trainer, cursor)
    if stop:
        raise PreemptedError(f"stopped at step {cursor.step} of {settings.steps}, saved")


def is_logged(settings: TrainSettings, step: int) -> bool:
    """Whether there is a metric line after `step` steps."""
    return step % settings.log_every_steps == 0 or step == settings.steps


def log_step(
    context: StageContext,
    trainer: Trainer,
    cursor: Cursor,
    report: StepReport,
    rate_and_seconds: tuple[float, float],
) -> None:
    """One heartbeat, and one metric line where it is due."""
    settings, (rate, seconds) = trainer.settings, rate_and_seconds
    speed = settings.windows_per_step * settings.window_tokens / max(seconds, 1e-9)
    context.report(
        step=cursor.step,
        steps=settings.steps,
        tokens=cursor.tokens,
        tokens_per_second=speed,
        eta_seconds=(settings.steps - cursor.step) * seconds,
        loss=report.loss,
    )
    if is_logged(settings, cursor.step):
        context.metric(
            step=cursor.step,
            tokens=cursor.tokens,
            loss=report.loss,
            learning_rate=rate,
            gradient_norm=report.gradient_norm,
            seconds=seconds,
            tokens_per_second=speed,
            **_machine_metrics(context, settings, speed),
            **_layer_metrics(trainer, report),
        )


def _machine_metrics(
    context: StageContext, settings: TrainSettings, speed: float
) -> dict[str, float | None]:
    used = flops_used(context.model, window_tokens=settings.window_tokens, tokens_per_second=speed)
    return {
        "flops_per_second": used,
        "utilisation": utilisation(used),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _layer_metrics(trainer: Trainer, report: StepReport) -> dict[str, Any]:
    """By global layer: gradient norms, and the busiest expert over the mean."""
    norms = report.layer_norms
    assert norms is not None, "asked for with every logged step"
    return {
        "gradient_norm_by_layer": [round(norm, 6) for norm in norms.layers],
        "gradient_norm_embedding": norms.embedding,
        "gradient_norm_head": norms.head,
        "expert_load_by_layer": [round(ratio, 4) for ratio in trainer.expert_load.take()],
    }


def mean_speed(context: StageContext) -> float:
    """Tokens per second over the middle half of the logged steps (their median)."""
    path = context.outputs / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    measured = (json.loads(line).get("tokens_per_second") for line in lines)
    speeds = sorted(speed for speed in measured if speed is not None)
    return speeds[len(speeds) // 2] if speeds else 0.0


def first_and_last_loss(context: StageContext, window: int = 5) -> tuple[float, float]:
    """Mean training loss over the first and the last few logged steps."""
    lines = (context.outputs / "metrics.jsonl").read_text().splitlines()
    losses: Sequence[float] = [value["loss"] for value in map(json.loads, lines) if "loss" in value]
    first, last = losses[:window], losses[-window:]
    return sum(first) / len(first), sum(last) / len(last)

"""The one training loop of pretrain, sft and extend: batches in, steps, checkpoints, metrics.

A step's batch is a pure function of its number, so the cursor of the data is the step itself.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from m1.data_recipes.pack import TokenBatch
from m1.infra.errors import PreemptedError
from m1.stages.context import StageContext
from m1.stages.settings import TrainSettings
from m1.stages.training.checkpoint_format import load_training, save_training
from m1.stages.training.schedule import learning_rate
from m1.stages.training.session import agree, check_batch, data_rank
from m1.stages.training.trainer import MicroBatch, StepReport, Trainer

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
    """
    count = check_batch(settings)
    rank, world = data_rank()
    cursor = resume_training(context, trainer)
    context.report(phase="training", step=cursor.step, steps=settings.steps)
    while cursor.step < settings.steps:
        started = time.monotonic()
        rate = learning_rate(settings, cursor.step)
        batches = to_micro_batches(batch_of(cursor.step, rank, world), count)
        report = trainer.step(batches, learning_rate=rate)
        cursor.step += 1
        cursor.tokens += settings.windows_per_step * settings.window_tokens
        log_step(context, settings, cursor, report, (rate, time.monotonic() - started))
        _save_or_stop(context, trainer, settings, cursor)
    return cursor


def _save_or_stop(
    context: StageContext, trainer: Trainer, settings: TrainSettings, cursor: Cursor
) -> None:
    stop = agree(context.stop.is_set)
    is_last = cursor.step == settings.steps
    if stop or (cursor.step % settings.checkpoint_every_steps == 0 and not is_last):
        save_checkpoint(context, trainer, cursor)
    if stop:
        raise PreemptedError(f"stopped at step {cursor.step} of {settings.steps}, saved")


def log_step(
    context: StageContext,
    settings: TrainSettings,
    cursor: Cursor,
    report: StepReport,
    rate_and_seconds: tuple[float, float],
) -> None:
    """One metric line and one heartbeat."""
    rate, seconds = rate_and_seconds
    speed = settings.windows_per_step * settings.window_tokens / max(seconds, 1e-9)
    context.report(
        step=cursor.step,
        steps=settings.steps,
        tokens=cursor.tokens,
        tokens_per_second=speed,
        eta_seconds=(settings.steps - cursor.step) * seconds,
        loss=report.loss,
    )
    if cursor.step % settings.log_every_steps == 0 or cursor.step == settings.steps:
        context.metric(
            step=cursor.step,
            tokens=cursor.tokens,
            loss=report.loss,
            learning_rate=rate,
            gradient_norm=report.gradient_norm,
            seconds=seconds,
            tokens_per_second=speed,
        )


def mean_speed(context: StageContext) -> float:
    """Tokens per second over the middle half of the logged steps (their median)."""
    import json

    path = context.outputs / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    speeds = sorted(json.loads(line).get("tokens_per_second", 0.0) for line in lines)
    return speeds[len(speeds) // 2] if speeds else 0.0


def first_and_last_loss(context: StageContext, window: int = 5) -> tuple[float, float]:
    """Mean training loss over the first and the last few logged steps."""
    import json

    lines = (context.outputs / "metrics.jsonl").read_text().splitlines()
    losses: Sequence[float] = [value["loss"] for value in map(json.loads, lines) if "loss" in value]
    first, last = losses[:window], losses[-window:]
    return sum(first) / len(first), sum(last) / len(last)

"""Stages extend-*: grow the window, raise the rotary base (M1 section 2.1, 01 report table 6).

Rows inside one long document, ordinary packed rows and replayed SFT samples are mixed. The loss
in the new window is measured three times: as inherited, with the rotary base alone changed, and
after training, so that what the steps contribute stands apart from what the base contributes.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from m1.data_recipes.pack import ExamplePlan, MixedPlan, TokenBatch, TokenShards, WindowPlan
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.canonical_json import parse_json
from m1.model.rotary import set_rotary_base
from m1.model.spec import HybridModel
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.settings import ExtendSettings, PretrainSettings
from m1.stages.sft import cold_start_examples
from m1.stages.training.evaluation import (
    accuracy_metrics,
    heldout_batches,
    loss_by_position,
    mean_loss,
    task_accuracy,
)
from m1.stages.training.loop import first_and_last_loss, mean_speed, train
from m1.stages.training.session import (
    MODEL_RECORD,
    build_options,
    hand_over_weights,
    open_model,
    open_tokenizer,
)
from m1.stages.training.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Held-out losses under one set of weights and one rotary base."""

    long_T: Tensor  # by position, in windows inside one document
    short: float | None  # mean, in the short window; None where it was not asked for


def run(context: StageContext, settings: ExtendSettings) -> StageOutcome:
    """Train on longer windows under a larger rotary base."""
    parent = context.weights_parent()
    assert parent is not None
    with open_model(context, build_options(context, settings), weights_of=parent) as model:
        record: Any = parse_json(context.fetch(parent, MODEL_RECORD).read_bytes())
        old_base, old_window = float(record["rotary_base"]), int(record["window_tokens"])
        tokenizer = open_tokenizer(context)
        directory = context.fetch("curate", "shards/")
        heldout = _heldout(TokenShards.open(directory, "heldout"), settings)
        before = _measure(context, model, heldout, old_base)
        base_only = _measure(context, model, (heldout[0], []), settings.rotary_base)
        plan = _plan(context, settings, tokenizer, TokenShards.open(directory, "train"))
        cursor = train(
            context,
            Trainer(model, settings),
            settings,
            lambda step, rank, world: plan.batch(step, rank=rank, world=world),
        )
        after = _measure(context, model, heldout, settings.rotary_base)
        accuracy = task_accuracy(
            model,
            tokenizer,
            settings.tasks,
            problems=settings.evaluation_problems,
            longest_tokens=settings.evaluation_tokens,
        )
        digest = hand_over_weights(
            context, model, rotary_base=settings.rotary_base, window_tokens=settings.window_tokens
        )
    first, last = first_and_last_loss(context)
    new = slice(min(old_window, settings.window_tokens - 1), None)
    return StageOutcome(
        steps=cursor.step,
        tokens=cursor.tokens,
        metrics={
            "loss_first": first,
            "loss_last": last,
            **loss_metrics(before, base_only, after, new),
            **accuracy_metrics(accuracy, ""),
            "tokens_per_second": mean_speed(context),
            "weights_sha256": digest,
        },
    )


def loss_metrics(
    before: Measured, base_only: Measured, after: Measured, new: slice
) -> dict[str, object]:
    """The three measurements side by side; `new` are the positions no earlier window reached."""
    named = {"_before": before, "_base_only": base_only, "": after}
    metrics: dict[str, object] = {"heldout_loss": after.short}
    for suffix, measured in named.items():
        if measured.short is not None:
            metrics[f"short_loss{suffix}"] = measured.short
        metrics[f"new_window_loss{suffix}"] = _mean(measured.long_T, new)
        metrics[f"loss_by_position{suffix}"] = _buckets(measured.long_T)
    metrics["drop_by_base"] = _mean(before.long_T, new) - _mean(base_only.long_T, new)
    metrics["drop_by_training"] = _mean(base_only.long_T, new) - _mean(after.long_T, new)
    return metrics


def _heldout(
    shards: TokenShards, settings: ExtendSettings
) -> tuple[list[TokenBatch], list[TokenBatch]]:
    """Held-out windows inside long documents, and ordinary short ones."""
    mixture, tokens = PretrainSettings().mixture, settings.heldout_tokens
    long = heldout_batches(
        shards,
        weights=mixture,
        window_tokens=settings.window_tokens,
        tokens=tokens,
        inside_documents=True,
    )
    short = heldout_batches(
        shards, weights=mixture, window_tokens=settings.short_window_tokens, tokens=tokens
    )
    return long, short


def _measure(
    context: StageContext,
    model: HybridModel,
    heldout: tuple[list[TokenBatch], list[TokenBatch]],
    rotary_base: float,
) -> Measured:
    context.report(phase="evaluating")
    set_rotary_base(model, rotary_base)
    long, short = heldout
    return Measured(
        long_T=loss_by_position(model, long), short=mean_loss(model, short) if short else None
    )


def _mean(loss_T: Tensor, where: slice) -> float:
    return float(loss_T[where].nanmean())


def _buckets(loss_T: Tensor) -> dict[str, float]:
    """Mean loss in position ranges that grow by four: 0-64, 64-256, 256-1024, ..."""
    edges = [0, 64]
    while edges[-1] < loss_T.shape[0]:
        edges.append(edges[-1] * 4)
    return {
        f"{low}-{min(high, loss_T.shape[0])}": _mean(loss_T, slice(low, high))
        for low, high in pairwise(edges)
    }


def _plan(
    context: StageContext, settings: ExtendSettings, tokenizer: Tokenizer, shards: TokenShards
) -> MixedPlan:
    """Long, short and replayed rows by their shares; every row has the stage's window."""
    mixture, seed = PretrainSettings().mixture, context.spec.seed
    common = {
        "window_tokens": settings.window_tokens,
        "windows_per_step": settings.windows_per_step,
        "steps": settings.steps,
        "seed": seed,
    }
    long = WindowPlan(
        shards, weights=mixture, min_document_tokens=settings.window_tokens + 1, **common
    )
    short = WindowPlan(shards, weights=mixture, **common)
    replay = ExamplePlan(
        cold_start_examples(
            tokenizer, settings.tasks, count=settings.examples, noise=settings.noise, seed=seed
        ),
        pad_id=tokenizer.pad_id,
        **common,
    )
    short_share = 1.0 - settings.long_share - settings.replay_share
    return MixedPlan(
        [(long, settings.long_share), (short, short_share), (replay, settings.replay_share)],
        windows_per_step=settings.windows_per_step,
        steps=settings.steps,
    )

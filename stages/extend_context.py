"""Stages extend-*: grow the window, raise the rotary base (M1 section 2.1, 01 report table 6).

Rows inside one long document, ordinary packed rows and replayed SFT samples are mixed. The loss
in the new window is measured three times: as inherited, with the rotary base alone changed, and
after training, so that what the steps contribute stands apart from what the base contributes.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from m1.data_recipes.pack import ExamplePlan, MixedPlan, TokenBatch, TokenShards, WindowPlan
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.canonical_json import parse_json
from m1.model.rotary import set_rotary_base
from m1.model.spec import HybridModel
from m1.stages.context import StageContext
from m1.stages.settings import ExtendSettings, PretrainSettings
from m1.stages.sft import accuracy_metrics, cold_start_examples
from m1.stages.training.evaluation import (
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
from m1.stages.worker import StageOutcome


def run(context: StageContext, settings: ExtendSettings) -> StageOutcome:
    """Train on longer windows under a larger rotary base."""
    parent = context.weights_parent()
    assert parent is not None
    record = parse_json((context.fetch(parent, MODEL_RECORD)).read_bytes())
    old_base, old_window = float(record["rotary_base"]), int(record["window_tokens"])  # type: ignore[index,call-overload]
    tokenizer = open_tokenizer(context)
    with open_model(context, build_options(context, settings), weights_of=parent) as model:
        mixture = PretrainSettings().mixture
        directory = context.fetch("curate", "shards/")
        heldout = TokenShards.open(directory, "heldout")
        long = heldout_batches(
            heldout,
            weights=mixture,
            window_tokens=settings.window_tokens,
            tokens=settings.heldout_tokens,
            inside_documents=True,
        )
        short = heldout_batches(
            heldout,
            weights=mixture,
            window_tokens=settings.short_window_tokens,
            tokens=settings.heldout_tokens,
        )
        before = _losses(context, model, (long, short), old_base)
        base_only = _losses(context, model, (long, short), settings.rotary_base)
        plan = _plan(context, settings, tokenizer, TokenShards.open(directory, "train"))
        trainer = Trainer(model, settings)
        cursor = train(
            context,
            trainer,
            settings,
            lambda step, rank, world: plan.batch(step, rank=rank, world=world),
        )
        after = _losses(context, model, (long, short), settings.rotary_base)
        accuracy = task_accuracy(
            model,
            tokenizer,
            settings.tasks,
            problems=settings.evaluation_problems,
        )
        hand_over_weights(
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
            "heldout_loss": after[1],
            "short_loss_before": before[1],
            "short_loss_base_only": base_only[1],
            "short_loss": after[1],
            "new_window_loss_before": _mean(before[0], new),
            "new_window_loss_base_only": _mean(base_only[0], new),
            "new_window_loss": _mean(after[0], new),
            "drop_by_base": _mean(before[0], new) - _mean(base_only[0], new),
            "drop_by_training": _mean(base_only[0], new) - _mean(after[0], new),
            "loss_by_position_before": _buckets(before[0]),
            "loss_by_position_base_only": _buckets(base_only[0]),
            "loss_by_position": _buckets(after[0]),
            **accuracy_metrics(accuracy, ""),
            "tokens_per_second": mean_speed(context),
        },
    )


def _losses(
    context: StageContext,
    model: HybridModel,
    batches: tuple[Sequence[TokenBatch], Sequence[TokenBatch]],
    rotary_base: float,
) -> tuple[Tensor, float]:
    """Loss by position in the long window and mean loss in the short one, under a base."""
    context.report(phase="evaluating")
    set_rotary_base(model, rotary_base)
    return loss_by_position(model, batches[0]), mean_loss(model, batches[1])


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

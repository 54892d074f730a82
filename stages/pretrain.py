"""Stage 2, pretrain: next-token prediction on the reasoning-heavy mixture (M1 section 2.1).

Held-out loss is measured before and after, beside the unigram entropy of the very same tokens.
"""

from pathlib import Path

from m1.data_recipes.pack import TokenShards, WindowPlan
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.import_weights import import_weights
from m1.stages.settings import PretrainSettings
from m1.stages.training.evaluation import heldout_batches, mean_loss, unigram_entropy
from m1.stages.training.loop import first_and_last_loss, mean_speed, train
from m1.stages.training.session import build_options, hand_over_weights, open_model
from m1.stages.training.trainer import Trainer


def run(context: StageContext, settings: PretrainSettings) -> StageOutcome:
    """Train from starting weights, from a published folder or from a parent, over the mixture."""
    options = build_options(context, settings)
    with open_model(context, options, weights_of=context.weights_parent()) as model:
        if settings.start_from is not None:
            context.report(phase="importing")
            import_weights(model, context.model, Path(settings.start_from))
        directory = context.fetch("curate", "shards/")
        plan = WindowPlan(
            TokenShards.open(directory, "train"),
            weights=settings.mixture,
            window_tokens=settings.window_tokens,
            windows_per_step=settings.windows_per_step,
            steps=settings.steps,
            seed=context.spec.seed,
        )
        heldout = heldout_batches(
            TokenShards.open(directory, "heldout"),
            weights=settings.mixture,
            window_tokens=settings.window_tokens,
            tokens=settings.heldout_tokens,
        )
        before = mean_loss(model, heldout)
        trainer = Trainer(model, settings)
        cursor = train(
            context,
            trainer,
            settings,
            lambda step, rank, world: plan.batch(step, rank=rank, world=world),
        )
        context.report(phase="evaluating")
        after = mean_loss(model, heldout)
        digest = hand_over_weights(
            context,
            model,
            rotary_base=settings.rotary_base,
            window_tokens=settings.window_tokens,
        )
    first, last = first_and_last_loss(context)
    entropy = unigram_entropy(heldout, context.model.vocabulary_size)
    return StageOutcome(
        steps=cursor.step,
        tokens=cursor.tokens,
        metrics={
            "loss_first": first,
            "loss_last": last,
            "heldout_loss_before": before,
            "heldout_loss": after,
            "unigram_entropy": entropy,
            "under_unigram": entropy - after,
            "tokens_per_second": mean_speed(context),
            "weights_sha256": digest,
        },
    )

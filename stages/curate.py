"""Stage 1, curate: raw documents to tokenizer, shards and tasks (M1 section 2.1).

Not a training job: no process groups, no model. The work is `m1.data_recipes`.
"""

import dataclasses
from pathlib import Path

from m1.data_recipes.curate import CurateProgress, curate
from m1.data_recipes.recipe import load_recipe
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.settings import CurateSettings


def run(context: StageContext, settings: CurateSettings) -> StageOutcome:
    """Curate the corpus into the outputs of this attempt."""

    def report(progress: CurateProgress) -> None:
        note = f"{progress.step} {progress.note}".strip()
        context.report(phase=note, step=progress.done, steps=progress.total)

    summary = curate(
        load_recipe(settings.recipe),
        corpus=Path(settings.corpus) if settings.corpus else None,
        output=context.outputs,
        seed=context.spec.seed,
        vocabulary_size=context.model.vocabulary_size,
        report=report,
    )
    tokens = sum(split["train"] for split in summary.tokens.values())
    return StageOutcome(metrics=dataclasses.asdict(summary), tokens=tokens)

"""Stage evaluate: one table over all stages: held-out loss and accuracy before and after each.

Every parent's committed weights are loaded in run order and measured on the same held-out tokens
and problems, with pass@k and its confidence interval for the last one.
"""

import math
from typing import Any

from m1.data_recipes.pack import TokenBatch, TokenShards
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.canonical_json import parse_json
from m1.model.rotary import set_rotary_base
from m1.model.spec import BuildOptions, HybridModel
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.settings import EvaluateSettings, PretrainSettings
from m1.stages.training.checkpoint_format import load_weights
from m1.stages.training.evaluation import (
    accuracy_metrics,
    answer_tasks,
    heldout_batches,
    heldout_tasks,
    mean_loss,
    task_accuracy,
)
from m1.stages.training.session import MODEL_RECORD, WEIGHTS, open_model, open_tokenizer

NORMAL_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def run(context: StageContext, settings: EvaluateSettings) -> StageOutcome:
    """Measure every stage's weights; the table is in the metrics and in `table.json`."""
    names = [name for name in context.spec.order if name in context.spec.parents]
    names.remove("curate")
    table: dict[str, dict[str, Any]] = {}
    with open_model(context, BuildOptions(), weights_of=None) as model:
        tokenizer = open_tokenizer(context)
        heldout = _heldout(context, settings)
        for index, name in enumerate(names):
            context.report(phase=f"evaluating {name}", step=index, steps=len(names))
            _load(context, model, name)
            table[name] = _measure(settings, model, tokenizer, heldout)
        passes = _pass_at_k(settings, model, tokenizer)
    context.write_output_json("table.json", table)
    last = table[names[-1]]
    return StageOutcome(
        steps=len(names),
        metrics={
            "table": table,
            "heldout_loss": last["heldout_loss"],
            "accuracy": last["accuracy"],
            "pass_at_k": passes,
        },
    )


def _heldout(context: StageContext, settings: EvaluateSettings) -> dict[str, list[TokenBatch]]:
    """Held-out windows of each kind of document, and of the mixture."""
    shards = TokenShards.open(context.fetch("curate", "shards/"), "heldout")
    mixture = PretrainSettings().mixture
    wanted = {"all": mixture, **{kind: {kind: 1.0} for kind in shards.kinds}}
    return {
        name: heldout_batches(
            shards,
            weights=weights,
            window_tokens=settings.window_tokens,
            tokens=settings.heldout_tokens if name == "all" else settings.heldout_tokens // 4,
        )
        for name, weights in wanted.items()
    }


def _load(context: StageContext, model: HybridModel, stage: str) -> None:
    """Load a stage's weights and rotary base."""
    load_weights(model, context.fetch(stage, WEIGHTS))
    record: Any = parse_json(context.fetch(stage, MODEL_RECORD).read_bytes())
    set_rotary_base(model, float(record["rotary_base"]))


def _measure(
    settings: EvaluateSettings,
    model: HybridModel,
    tokenizer: Tokenizer,
    heldout: dict[str, list[TokenBatch]],
) -> dict[str, Any]:
    losses = {name: mean_loss(model, batches) for name, batches in heldout.items()}
    accuracy = task_accuracy(
        model,
        tokenizer,
        settings.tasks,
        problems=settings.problems,
        longest_tokens=settings.evaluation_tokens,
    )
    return {
        "heldout_loss": losses.pop("all"),
        "loss_by_kind": losses,
        **accuracy_metrics(accuracy, ""),
    }


def _pass_at_k(
    settings: EvaluateSettings, model: HybridModel, tokenizer: Tokenizer
) -> dict[str, dict[str, float]]:
    """Share of held-out problems that one of k samples solves, with a 95 % Wilson interval."""
    answers = {}
    for family, mix in settings.tasks.items():
        tasks = heldout_tasks({family: mix}, settings.problems)
        solved = [False] * len(tasks)
        for copy in range(settings.pass_at):
            done = answer_tasks(
                model,
                tokenizer,
                tasks,
                temperature=settings.temperature,
                longest_tokens=settings.evaluation_tokens,
                copy=1 + copy,
            )
            solved = [known or bool(right) for known, (right, _) in zip(solved, done, strict=True)]
        low, high = wilson_interval(sum(solved), len(solved))
        answers[family] = {"pass_at_k": sum(solved) / len(solved), "low": low, "high": high}
    return answers


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson's score interval)."""
    share, z2 = successes / trials, NORMAL_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    half = NORMAL_95 * spread / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)

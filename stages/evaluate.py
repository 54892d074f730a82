"""Stage evaluate: one table over all stages: held-out loss and accuracy before and after each.

Every parent's committed weights are loaded in run order and measured on the same held-out tokens
and problems; pass@k with its interval before and after reinforcement; retrieval by depth and
length for the last weights.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from m1.data_recipes.pack import TokenBatch, TokenShards
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.canonical_json import parse_json
from m1.model.rotary import set_rotary_base
from m1.model.spec import BuildOptions, HybridModel
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.registry import kind_of
from m1.stages.settings import EvaluateSettings, PretrainSettings
from m1.stages.training.checkpoint_format import load_weights
from m1.stages.training.evaluation import (
    EVALUATION_SEED,
    accuracy_metrics,
    answer_tasks,
    gather,
    heldout_batches,
    heldout_tasks,
    interleave_ranks,
    mean_loss,
    task_accuracy,
)
from m1.stages.training.pass_at_k import pass_at_k, powers_of_two
from m1.stages.training.retrieval import measure_cell
from m1.stages.training.session import (
    MODEL_RECORD,
    WEIGHTS,
    data_rank,
    open_model,
    open_tokenizer,
)

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the needle: 0 is the window's beginning


def run(context: StageContext, settings: EvaluateSettings) -> StageOutcome:
    """Measure every stage's weights; the table is in the metrics and in `table.json`."""
    names = [name for name in context.spec.order if name in context.spec.parents]
    names.remove("curate")
    table: dict[str, dict[str, Any]] = {}
    passes: dict[str, Any] = {}
    with open_model(context, BuildOptions(), weights_of=None) as model:
        tokenizer = open_tokenizer(context)
        heldout = _heldout(context, settings)
        for index, name in enumerate(names):
            context.report(phase=f"evaluating {name}", step=index, steps=len(names))
            _load(context, model, name)
            table[name] = _measure(settings, model, tokenizer, heldout)
            if name in around_reinforcement(names):
                passes[name] = _pass_at(settings, model, tokenizer)
        context.report(phase="retrieval", step=len(names), steps=len(names))
        grid = _retrieval(context, settings, model, tokenizer)
    context.write_output_json("table.json", table)
    context.write_output_json("retrieval.json", {"cells": grid})
    last = table[names[-1]]
    return StageOutcome(
        steps=len(names),
        metrics={
            "table": table,
            "heldout_loss": last["heldout_loss"],
            "accuracy": last["accuracy"],
            "pass_at_k": passes,
            "retrieval": grid,
        },
    )


def around_reinforcement(names: Sequence[str]) -> set[str]:
    """The weights that reinforcement started from, and what each of its stages made of them."""
    after = [index for index, name in enumerate(names) if kind_of(name).name == "reinforce"]
    before = {names[index - 1] for index in after[:1] if index > 0}
    return before | {names[index] for index in after}


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


def _pass_at(
    settings: EvaluateSettings, model: HybridModel, tokenizer: Tokenizer
) -> dict[str, dict[str, dict[str, float]]]:
    """pass@1, 2, 4 ... per family on held-out problems, each with its interval."""
    samples = settings.pass_at
    tasks = heldout_tasks(settings.tasks, settings.problems)
    done = answer_tasks(
        model,
        tokenizer,
        tasks * samples,
        temperature=settings.temperature,
        longest_tokens=settings.evaluation_tokens,
        copy=1,
    )
    right: dict[str, list[int]] = {family: [] for family in settings.tasks}
    for index, task in enumerate(tasks):
        copies = done[index :: len(tasks)]
        right[task.family].append(sum(correctness == 1.0 for correctness, _ in copies))
    return {
        family: {
            str(k): asdict(pass_at_k(counts, samples=samples, k=k)) for k in powers_of_two(samples)
        }
        for family, counts in right.items()
    }


def _retrieval(
    context: StageContext, settings: EvaluateSettings, model: HybridModel, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The grid over lengths and depths, plain and with distractors; ranks share the cells."""
    shards = TokenShards.open(context.fetch("curate", "shards/"), "heldout")
    model.eval()
    wanted = [
        (length, distractors, depth)
        for length in settings.needle_lengths
        for distractors in (0, settings.needle_distractors)
        for depth in DEPTHS
    ]
    haystacks = {
        length: _haystacks(shards, length, settings.needle_trials)
        for length in settings.needle_lengths
    }
    rank, world = data_rank()
    own = [
        measure_cell(
            model,
            tokenizer,
            haystacks[length],
            depth=depth,
            distractors=distractors,
            seed=f"{EVALUATION_SEED}/{length}/{distractors}/{depth}",
        )
        for length, distractors, depth in wanted[rank::world]
    ]
    return [asdict(cell) for cell in interleave_ranks(gather(own), len(wanted))]


def _haystacks(shards: TokenShards, length: int, trials: int) -> list[list[int]]:
    batches = heldout_batches(
        shards, weights=PretrainSettings().mixture, window_tokens=length, tokens=length * trials
    )
    rows = [row.tolist() for batch in batches for row in batch.tokens_BT[:, :length]]
    return rows[:trials]

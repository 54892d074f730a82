"""Stage 3, sft: chain-of-thought cold start (M1 section 2.2).

Prompts are masked, samples are packed whole and never see each other. A share of the written
steps is noise, so that sampling is imperfect while the most likely answer is right: the room
that reinforcement learning works in (ours; the paper gives no numbers for this stage).
"""

import random
from collections.abc import Mapping

from m1.data_recipes.chat import Message, prompt_token_ids, response_token_ids
from m1.data_recipes.pack import (
    Example,
    ExamplePlan,
    MixedPlan,
    TokenShards,
    WindowPlan,
    example_of,
)
from m1.data_recipes.tasks.families import FAMILIES, Task, answer_of, make_tasks
from m1.data_recipes.tokenizer import Tokenizer
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.settings import PretrainSettings, SftSettings, TaskMix
from m1.stages.training.evaluation import TaskAccuracy, accuracy_metrics, task_accuracy
from m1.stages.training.loop import first_and_last_loss, mean_speed, train
from m1.stages.training.session import (
    build_options,
    hand_over_weights,
    open_model,
    open_tokenizer,
)
from m1.stages.training.trainer import Trainer


def run(context: StageContext, settings: SftSettings) -> StageOutcome:
    """Fine-tune on cold-start samples; accuracy on held-out problems before and after."""
    options = build_options(context, settings)
    with open_model(context, options, weights_of=context.weights_parent()) as model:
        tokenizer = open_tokenizer(context)
        plan = _plan(context, settings, tokenizer)

        def measure(*, with_greedy: bool = True) -> dict[str, TaskAccuracy]:
            context.report(phase="evaluating")
            return task_accuracy(
                model,
                tokenizer,
                settings.tasks,
                problems=settings.evaluation_problems,
                longest_tokens=settings.evaluation_tokens,
                with_greedy=with_greedy,
            )

        before = measure(with_greedy=False)
        trainer = Trainer(model, settings)
        cursor = train(
            context,
            trainer,
            settings,
            lambda step, rank, world: plan.batch(step, rank=rank, world=world),
        )
        after = measure()
        digest = hand_over_weights(
            context, model, rotary_base=settings.rotary_base, window_tokens=settings.window_tokens
        )
    first, last = first_and_last_loss(context)
    return StageOutcome(
        steps=cursor.step,
        tokens=cursor.tokens,
        metrics={
            "loss_first": first,
            "loss_last": last,
            **accuracy_metrics(before, "_before"),
            **accuracy_metrics(after, ""),
            "tokens_per_second": mean_speed(context),
            "weights_sha256": digest,
        },
    )


def _plan(context: StageContext, settings: SftSettings, tokenizer: Tokenizer) -> MixedPlan:
    """Packed cold-start samples, and rows of ordinary text by `text_share`."""
    common = {
        "window_tokens": settings.window_tokens,
        "windows_per_step": settings.windows_per_step,
        "steps": settings.steps,
        "seed": context.spec.seed,
    }
    samples = ExamplePlan(
        cold_start_examples(
            tokenizer,
            settings.tasks,
            count=settings.examples,
            noise=settings.noise,
            seed=context.spec.seed,
        ),
        pad_id=tokenizer.pad_id,
        **common,
    )
    shards = TokenShards.open(context.fetch("curate", "shards/"), "train")
    text = WindowPlan(shards, weights=PretrainSettings().mixture, **common)
    return MixedPlan(
        [(samples, 1.0 - settings.text_share), (text, settings.text_share)],
        windows_per_step=settings.windows_per_step,
        steps=settings.steps,
    )


def cold_start_examples(
    tokenizer: Tokenizer, tasks: Mapping[str, TaskMix], *, count: int, noise: float, seed: int
) -> list[Example]:
    """Prompt and response of `count` problems; only the response counts in the loss."""
    total = sum(mix.share for mix in tasks.values())
    examples = []
    for family, mix in sorted(tasks.items()):
        wanted = max(1, round(count * mix.share / total))
        chosen = make_tasks(family, count=wanted, difficulty=mix.difficulty, seed=seed, split="sft")
        examples += [cold_start_example(tokenizer, task, noise=noise) for task in chosen]
    random.Random(seed).shuffle(examples)  # noqa: S311  (not a secret)
    return examples


def cold_start_example(tokenizer: Tokenizer, task: Task, *, noise: float) -> Example:
    """One problem with a written-out solution; the noise is drawn from the task's own id."""
    rng = random.Random(f"{task.seed}/{task.id}")  # noqa: S311  (not a secret)
    thought = FAMILIES[task.family].solution(task, rng, noise=noise)
    prompt = prompt_token_ids(tokenizer, [Message(role="user", content=task.prompt)])
    return example_of(prompt, response_token_ids(tokenizer, thought, answer_of(thought)))

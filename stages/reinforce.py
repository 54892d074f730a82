"""Stages reinforce-*: curriculum RL with CISPO (M1 sections 3 to 5).

The loop on one page: draw prompts -> roll out -> verify -> advantages -> off-policy updates. The
sampler reads the trainer's own weights, so there is no weight sync to get wrong; the gap between
the two is measured on the first update of every batch all the same, and ends the stage when large.
"""

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from m1.data_recipes.tasks.families import Task
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.errors import PreemptedError
from m1.model.decode import Decoder
from m1.model.whole_weights import whole_weights
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.rl.curriculum import Curriculum
from m1.stages.rl.health import check_gap, check_loops
from m1.stages.rl.log import RolloutStatistics, log_rollouts, log_updates
from m1.stages.rl.rollout import Group, Prompts, roll_out, stable_seed
from m1.stages.rl.update import policy_objective, to_micro_batches, weighted_samples
from m1.stages.rl.windows import WindowLadder
from m1.stages.settings import ReinforceSettings
from m1.stages.training.evaluation import (
    TaskAccuracy,
    accuracy_metrics,
    gather,
    interleave_ranks,
    task_accuracy,
)
from m1.stages.training.loop import Cursor, mean_speed, resume_training, save_checkpoint
from m1.stages.training.schedule import learning_rate
from m1.stages.training.session import (
    agree,
    build_options,
    data_rank,
    hand_over_weights,
    open_model,
    open_tokenizer,
)
from m1.stages.training.trainer import StepReport, Trainer

STATE_FILE = "reinforcement.json"


def run(context: StageContext, settings: ReinforceSettings) -> StageOutcome:
    """Reinforce from the parent's weights; held-out reward before and after."""
    options = build_options(context, settings)
    with open_model(context, options, weights_of=context.weights_parent()) as model:
        tokenizer = open_tokenizer(context)
        curriculum = Curriculum(settings)

        def measure() -> dict[str, TaskAccuracy]:
            context.report(phase="evaluating")
            return task_accuracy(
                model,
                tokenizer,
                curriculum.families,
                problems=settings.evaluation_problems,
                longest_tokens=settings.evaluation_tokens,
            )

        before = measure()
        trainer = Trainer(model, settings)
        cursor = resume_training(context, trainer)
        ladder = WindowLadder((*settings.windows, settings.window_tokens))
        _restore(context, curriculum, ladder)
        prompts = Prompts(settings, context.spec.seed)
        context.report(phase="training", step=cursor.step, steps=settings.steps)
        while cursor.step < settings.steps:
            started = time.monotonic()
            model.eval()
            weights = whole_weights(model)
            decoder = Decoder(weights, context.model, rotary_base=settings.rotary_base)
            groups = _sample(decoder, tokenizer, prompts, curriculum, (cursor.step, ladder))
            sampled = time.monotonic()
            rate = learning_rate(settings, cursor.step)
            reports = _update(trainer, groups, settings, (rate, context.spec.seed, cursor.step))
            rollouts = RolloutStatistics.of(groups)
            check_loops(rollouts.loop_share, largest=settings.largest_loop_share, step=cursor.step)
            curriculum.observe(_passes(groups))
            cursor.step += 1
            cursor.tokens += rollouts.tokens
            times = (sampled - started, time.monotonic() - sampled)
            log_rollouts(context, curriculum, cursor, (rollouts, ladder.window_tokens, times))
            log_updates(context, reports, step=cursor.step)
            ladder.observe(perplexity=rollouts.perplexity, length_p99=rollouts.length_p99)
            _save_or_stop(context, trainer, cursor, curriculum, ladder)
        after = measure()
        digest = hand_over_weights(
            context, model, rotary_base=settings.rotary_base, window_tokens=settings.window_tokens
        )
    return StageOutcome(
        steps=cursor.step,
        tokens=cursor.tokens,
        metrics={**_metrics(context, settings, before, after), "weights_sha256": digest},
    )


def _sample(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Prompts,
    curriculum: Curriculum,
    step_and_window: tuple[int, WindowLadder],
) -> list[Group]:
    """One rollout batch; groups without signal are replaced in a bounded number of rounds."""
    settings, (step, ladder) = prompts.settings, step_and_window
    kept: list[Group] = []
    spare: list[Group] = []
    for round_ in range(1 + settings.resample_rounds):
        wanted = settings.prompts_per_step - len(kept)
        if wanted == 0:
            break
        tasks = prompts.draw(curriculum, step=step, round_=round_, count=wanted)
        seed = stable_seed(prompts.seed, step, round_)
        groups = _roll_out_on_all_ranks(
            decoder, tokenizer, tasks, settings, (seed, ladder.window_tokens)
        )
        kept += [group for group in groups if group.has_signal]
        spare += [group for group in groups if not group.has_signal]
    # out of rounds: train on what there is; groups without signal only count in the statistics
    return kept + spare


def _roll_out_on_all_ranks(
    decoder: Decoder,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    settings: ReinforceSettings,
    seed_and_window: tuple[int, int],
) -> list[Group]:
    """Each rank samples its share of the prompts with the whole model; all see all groups."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    seed, window_tokens = seed_and_window
    own = roll_out(
        decoder,
        tokenizer,
        tasks[rank::world],
        settings=settings,
        window_tokens=window_tokens,
        seed=stable_seed(seed, rank),
    )
    return interleave_ranks(gather(own), len(tasks))


def _passes(groups: Sequence[Group]) -> dict[str, list[float]]:
    passes: dict[str, list[float]] = {}
    for group in groups:
        judged = [s.correctness for s in group.samples if not s.is_masked]
        if judged:
            passes.setdefault(group.task.family, []).extend(judged)
    return passes


def _update(
    trainer: Trainer,
    groups: Sequence[Group],
    settings: ReinforceSettings,
    rate_seed_step: tuple[float, int, int],
) -> list[StepReport]:
    """The off-policy updates of one rollout batch, on shuffled samples."""
    rate, seed, step = rate_seed_step
    samples = weighted_samples(groups, normaliser=settings.normaliser)
    if not samples:
        return []
    random.Random(stable_seed(seed, step, 1 << 20)).shuffle(samples)  # noqa: S311
    updates = min(settings.updates_per_step, len(samples))
    loss = policy_objective(settings)
    rank, world = data_rank()
    reports = []
    for index in range(updates):
        batches = to_micro_batches(
            samples[index::updates], rank=rank, world=world, windows=settings.micro_batch_windows
        )
        reports.append(trainer.step(batches, learning_rate=rate, loss=loss))
        if index == 0:
            gap = reports[0].sums["gap"] / reports[0].tokens
            check_gap(gap, largest=settings.largest_gap_nats, step=step)
    return reports


def _restore(context: StageContext, curriculum: Curriculum, ladder: WindowLadder) -> None:
    """Curriculum and window as the checkpoint that this attempt resumed from left them."""
    stored = context.carried(STATE_FILE)
    if stored is not None:
        state = json.loads(stored.read_text())
        curriculum.restore(state["curriculum"])
        ladder.restore(state["window"])


def _save_or_stop(
    context: StageContext,
    trainer: Trainer,
    cursor: Cursor,
    curriculum: Curriculum,
    ladder: WindowLadder,
) -> None:
    settings = curriculum.settings
    stop = agree(context.stop.is_set)
    due = cursor.step % settings.checkpoint_every_steps == 0 and cursor.step < settings.steps
    if stop or due:
        state = {"curriculum": curriculum.to_json(), "window": ladder.to_json()}
        context.write_output_json(STATE_FILE, state)
        save_checkpoint(context, trainer, cursor)
    if stop:
        raise PreemptedError(f"stopped at step {cursor.step} of {settings.steps}, saved")


def _metrics(
    context: StageContext,
    settings: ReinforceSettings,
    before: dict[str, TaskAccuracy],
    after: dict[str, TaskAccuracy],
) -> dict[str, Any]:
    """Rewards on held-out problems, weighted by the shares of the stage's own mix."""
    mix = {**settings.tasks, **settings.later_tasks}
    total = sum(entry.share for entry in mix.values())

    def mean_reward(accuracy: dict[str, TaskAccuracy]) -> float:
        return sum(accuracy[name].sampled * entry.share for name, entry in mix.items()) / total

    return {
        "reward_first": mean_reward(before),
        "reward_last": mean_reward(after),
        **accuracy_metrics(before, "_before"),
        **accuracy_metrics(after, ""),
        "tokens_per_second": mean_speed(context),
    }

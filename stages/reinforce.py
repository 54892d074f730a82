"""Stages reinforce-*: curriculum RL with CISPO (M1 sections 3 to 5).

The loop on one page: draw prompts -> roll out -> verify -> advantages -> off-policy updates. The
sampler reads the trainer's own weights, so there is no weight sync to get wrong.

Shape letters: B sequences, T tokens.
"""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from m1.data_recipes.tasks.families import Task
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.errors import PreemptedError
from m1.model.cispo import ObjectiveSettings, policy_loss
from m1.model.decode import Decoder
from m1.model.whole_weights import whole_weights
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.rl.curriculum import Curriculum
from m1.stages.rl.rollout import Group, Prompts, Sample, roll_out, stable_seed
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
from m1.stages.training.trainer import LossFunction, MicroBatch, StepReport, Trainer

CURRICULUM_FILE = "curriculum.json"


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
        curriculum = _restore_curriculum(context, settings)
        prompts = Prompts(settings, context.spec.seed)
        context.report(phase="training", step=cursor.step, steps=settings.steps)
        while cursor.step < settings.steps:
            started = time.monotonic()
            model.eval()
            weights = whole_weights(model)
            decoder = Decoder(weights, context.model, rotary_base=settings.rotary_base)
            groups = _sample(decoder, tokenizer, prompts, curriculum, cursor.step)
            sampled = time.monotonic()
            rate = learning_rate(settings, cursor.step)
            reports = _update(trainer, groups, settings, (rate, context.spec.seed, cursor.step))
            curriculum.observe(_passes(groups))
            cursor.step += 1
            cursor.tokens += sum(len(s.response_token_ids) for g in groups for s in g.samples)
            times = (sampled - started, time.monotonic() - sampled)
            _log(context, curriculum, (cursor, settings), groups, reports, times)
            _save_or_stop(context, trainer, curriculum, cursor)
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
    decoder: Decoder, tokenizer: Tokenizer, prompts: Prompts, curriculum: Curriculum, step: int
) -> list[Group]:
    """One rollout batch; groups without signal are replaced in a bounded number of rounds."""
    settings = prompts.settings
    kept: list[Group] = []
    spare: list[Group] = []
    for round_ in range(1 + settings.resample_rounds):
        wanted = settings.prompts_per_step - len(kept)
        if wanted == 0:
            break
        tasks = prompts.draw(curriculum, step=step, round_=round_, count=wanted)
        seed = stable_seed(prompts.seed, step, round_)
        groups = _roll_out_on_all_ranks(decoder, tokenizer, tasks, settings, seed)
        kept += [group for group in groups if group.has_signal]
        spare += [group for group in groups if not group.has_signal]
    # out of rounds: train on what there is; groups without signal only count in the statistics
    return kept + spare


def _roll_out_on_all_ranks(
    decoder: Decoder,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    settings: ReinforceSettings,
    seed: int,
) -> list[Group]:
    """Each rank samples its share of the prompts with the whole model; all see all groups."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = roll_out(
        decoder, tokenizer, tasks[rank::world], settings=settings, seed=stable_seed(seed, rank)
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
    samples = [
        sample
        for group in groups
        if group.has_signal
        for sample in group.samples
        if not sample.is_masked
    ]
    if not samples:
        return []
    random.Random(stable_seed(seed, step, 1 << 20)).shuffle(samples)  # noqa: S311
    updates = min(settings.updates_per_step, len(samples))
    loss = _policy_objective(settings)
    rank, world = data_rank()
    return [
        trainer.step(
            [_to_batch(samples[index::updates], rank, world)], learning_rate=rate, loss=loss
        )
        for index in range(updates)
    ]


def _to_batch(everyone: Sequence[Sample], rank: int, world: int) -> MicroBatch:
    """This rank's sequences, padded on the right; only responses count.

    A rank without a sequence of its own takes the first one with a weight of zero, so that all
    ranks take part in every collective.
    """
    samples = everyone[rank::world] or everyone[:1]
    weight = 1.0 if everyone[rank::world] else 0.0
    longest = max(len(s.prompt_token_ids) + len(s.response_token_ids) for s in samples)
    shape = (len(samples), longest)
    tokens = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape)
    behaviour = torch.zeros(shape)
    for row, sample in enumerate(samples):
        start = len(sample.prompt_token_ids)
        stop = start + len(sample.response_token_ids)
        tokens[row, :stop] = torch.tensor(sample.prompt_token_ids + sample.response_token_ids)
        mask[row, start:stop] = weight
        behaviour[row, start:stop] = torch.tensor(sample.behaviour_logprobs)
    batch = {
        "tokens_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:],
        "loss_mask_BT": mask[:, 1:],
        "behaviour_BT": behaviour[:, 1:],
        "advantages_B": torch.tensor([s.advantage for s in samples]),
    }
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    return {name: tensor.contiguous().to(device) for name, tensor in batch.items()}


def _policy_objective(settings: ReinforceSettings) -> LossFunction:
    objective = ObjectiveSettings(
        objective=settings.objective,
        is_weight_max=settings.is_weight_max,
        is_weight_min=settings.is_weight_min,
    )

    def loss(
        logprobs_BT: torch.Tensor, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mask = batch["loss_mask_BT"]
        answer = policy_loss(
            logprobs_BT,
            batch["behaviour_BT"],
            batch["advantages_B"],
            mask,
            settings=objective,
            normaliser_tokens=1.0,  # the trainer divides by the tokens of the global batch
        )
        with torch.no_grad():
            gap = ((logprobs_BT - batch["behaviour_BT"]).abs() * mask).sum()
            sums = {
                "gap": gap,
                "capped": answer.capped_share * mask.sum(),
                "ratio_max": answer.ratio_max,
                "nats": -(logprobs_BT * mask).sum(),
            }
        return answer.loss, sums

    return loss


def _restore_curriculum(context: StageContext, settings: ReinforceSettings) -> Curriculum:
    stored = context.carried(CURRICULUM_FILE)
    if stored is None:
        return Curriculum(settings)
    return Curriculum.from_json(settings, json.loads(Path(stored).read_text()))


def _save_or_stop(
    context: StageContext, trainer: Trainer, curriculum: Curriculum, cursor: Cursor
) -> None:
    settings = curriculum.settings
    stop = agree(context.stop.is_set)
    due = cursor.step % settings.checkpoint_every_steps == 0 and cursor.step < settings.steps
    if stop or due:
        context.write_output_json(CURRICULUM_FILE, curriculum.to_json())
        save_checkpoint(context, trainer, cursor)
    if stop:
        raise PreemptedError(f"stopped at step {cursor.step} of {settings.steps}, saved")


def _log(
    context: StageContext,
    curriculum: Curriculum,
    cursor_and_settings: tuple[Cursor, ReinforceSettings],
    groups: Sequence[Group],
    reports: Sequence[StepReport],
    times: tuple[float, float],
) -> None:
    """One metric line and one heartbeat per rollout batch."""
    cursor, settings = cursor_and_settings
    samples = [sample for group in groups for sample in group.samples]
    judged = [sample for sample in samples if not sample.is_masked]
    mean_reward = sum(s.reward for s in judged) / max(1, len(judged))
    lengths = sorted(len(s.response_token_ids) for s in samples)
    seconds = sum(times)
    speed = sum(lengths) / max(seconds, 1e-9)
    tokens = max(1, sum(r.tokens for r in reports))
    context.metric(
        step=cursor.step,
        tokens=cursor.tokens,
        reward=mean_reward,
        correctness=sum(s.correctness for s in judged) / max(1, len(judged)),
        masked_share=1.0 - len(judged) / len(samples),
        signal_share=sum(g.has_signal for g in groups) / len(groups),
        updates=len(reports),
        gradient_norm=max((r.gradient_norm for r in reports), default=0.0),
        ratio_max=max((r.sums["ratio_max"] for r in reports), default=1.0),
        capped_share=sum(r.sums["capped"] for r in reports) / tokens,
        entropy_nats=sum(r.sums["nats"] for r in reports) / tokens,
        train_sampler_gap=reports[0].sums["gap"] / reports[0].tokens if reports else 0.0,
        length_mean=sum(lengths) / len(lengths),
        length_p99=lengths[int(0.99 * (len(lengths) - 1))],
        weights=curriculum.weights(cursor.step),
        pass_rates=dict(curriculum.pass_rates),
        seconds_sampling=times[0],
        seconds_updating=times[1],
        tokens_per_second=speed,
    )
    context.report(
        step=cursor.step,
        steps=settings.steps,
        tokens=cursor.tokens,
        tokens_per_second=speed,
        eta_seconds=(settings.steps - cursor.step) * seconds,
        reward=mean_reward,
        samples=tuple({"family": s.family, "text": s.text} for s in samples[:3]),
    )


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

"""What a reinforce stage writes down per rollout batch: metric lines and a heartbeat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from m1.stages.context import StageContext
from m1.stages.rl.curriculum import Curriculum
from m1.stages.rl.health import loop_share, same_share
from m1.stages.rl.rollout import Group, Sample
from m1.stages.training.loop import Cursor
from m1.stages.training.trainer import StepReport

SHOWN_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStatistics:
    """One rollout batch in numbers; rewards over what could be judged."""

    samples: tuple[Sample, ...]
    tokens: int
    reward: float
    correctness: float
    masked_share: float
    signal_share: float
    length_p99: int
    perplexity: float
    loop_share: float
    same_share: float

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Self:
        """Measure the responses of a batch."""
        samples = tuple(sample for group in groups for sample in group.samples)
        judged = [sample for sample in samples if not sample.is_masked]
        responses = [sample.response_token_ids for sample in samples]
        lengths = sorted(len(response) for response in responses)
        tokens = max(1, sum(lengths))
        nats = -sum(sum(sample.behaviour_logprobs) for sample in samples)
        return cls(
            samples=samples,
            tokens=sum(lengths),
            reward=sum(s.reward for s in judged) / max(1, len(judged)),
            correctness=sum(s.correctness for s in judged) / max(1, len(judged)),
            masked_share=1.0 - len(judged) / len(samples),
            signal_share=sum(group.has_signal for group in groups) / len(groups),
            length_p99=lengths[int(0.99 * (len(lengths) - 1))],
            perplexity=math.exp(nats / tokens),
            loop_share=loop_share(responses),
            same_share=sum(
                same_share([sample.response_token_ids for sample in group.samples])
                for group in groups
            )
            / len(groups),
        )


def log_rollouts(
    context: StageContext,
    curriculum: Curriculum,
    cursor: Cursor,
    batch: tuple[RolloutStatistics, int, tuple[float, float]],
) -> None:
    """A metric line and a heartbeat; `batch`: statistics, window, seconds sampling and updating."""
    rollouts, window_tokens, times = batch
    settings, seconds = curriculum.settings, sum(times)
    speed = rollouts.tokens / max(seconds, 1e-9)
    context.metric(
        step=cursor.step,
        tokens=cursor.tokens,
        reward=rollouts.reward,
        correctness=rollouts.correctness,
        masked_share=rollouts.masked_share,
        signal_share=rollouts.signal_share,
        length_mean=rollouts.tokens / len(rollouts.samples),
        length_p99=rollouts.length_p99,
        window_tokens=window_tokens,
        perplexity=rollouts.perplexity,
        loop_share=rollouts.loop_share,
        same_share=rollouts.same_share,
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
        reward=rollouts.reward,
        samples=tuple(
            {"family": s.family, "text": s.text} for s in rollouts.samples[:SHOWN_SAMPLES]
        ),
    )


def log_updates(context: StageContext, reports: Sequence[StepReport], *, step: int) -> None:
    """A metric line about the off-policy updates of a batch; none if it had no signal."""
    if not reports:
        return
    tokens = max(1, sum(report.tokens for report in reports))
    context.metric(
        step=step,
        updates=len(reports),
        skipped_updates=sum(not report.was_applied for report in reports),
        gradient_norm=max(report.gradient_norm for report in reports),
        gradient_norms=[round(report.gradient_norm, 6) for report in reports],
        ratio_max=max(report.sums["ratio_max"] for report in reports),
        capped_share=sum(report.sums["capped"] for report in reports) / tokens,
        entropy_nats=sum(report.sums["nats"] for report in reports) / tokens,
        train_sampler_gap=reports[0].sums["gap"] / reports[0].tokens,
    )

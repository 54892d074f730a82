"""From verdicts to advantages: reward shaping and the group baseline (M1 sections 3.1 and 4)."""

from collections.abc import Sequence

from m1.data_recipes.tasks.families import Verdict
from m1.stages.settings import ReinforceSettings

OVERLONG_FRACTION = 0.2  # the last fifth of the window is penalised linearly (ours, after DAPO)
SMALLEST_DEVIATION = 1e-6


def reward(
    verdict: Verdict, *, length_tokens: int, was_cut: bool, settings: ReinforceSettings
) -> float:
    """Correctness plus format, minus the overlong penalty."""
    window = settings.window_tokens
    start = (1.0 - OVERLONG_FRACTION) * window
    excess = max(0.0, length_tokens - start) / (OVERLONG_FRACTION * window)
    penalty = settings.overlong_penalty * min(1.0, excess) if excess or was_cut else 0.0
    return verdict.correctness + settings.format_reward * verdict.format - penalty


def group_advantages(rewards: Sequence[float]) -> list[float] | None:
    """(R - mean) / std within one group (eq. 2); None where all rewards are equal."""
    mean = sum(rewards) / len(rewards)
    deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    if deviation < SMALLEST_DEVIATION:
        return None
    return [(r - mean) / deviation for r in rewards]


def judged_advantages(verdicts: Sequence[Verdict], rewards: Sequence[float]) -> list[float] | None:
    """Advantages among the judged samples of a group; a masked one gets 0.0 and moves no baseline.

    None where the judged ones give no signal.
    """
    judged = [r for r, verdict in zip(rewards, verdicts, strict=True) if not verdict.is_masked]
    advantages = group_advantages(judged) if judged else None
    if advantages is None:
        return None
    remaining = iter(advantages)
    return [0.0 if verdict.is_masked else next(remaining) for verdict in verdicts]

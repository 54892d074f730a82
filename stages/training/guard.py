"""Decides after every backward pass whether the update may be applied. Pure; no torch.

A loss or gradient norm that is not finite, or a loss far above its running median, is a bad batch:
its update is not applied. Several in a row mean that the weights themselves have gone wrong: the
training goes back to the last checkpoint and passes over everything since. Both are bounded and
recorded. The policy is ours, after the restart-and-skip practice of PaLM (section 5.1): M1 reports
a gradient explosion at longer windows (section 2.1), and no guard.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from m1.infra.errors import StageFailedError
from m1.stages.settings import TrainSettings

HISTORY_STEPS = 32  # ours: losses that the median is taken over
FEWEST_LOSSES = 8  # ours: before that many there is no telling what is usual


class Verdict(StrEnum):
    """What to do with one batch."""

    APPLY = "apply"
    SKIP = "skip"
    ROLL_BACK = "roll_back"


@dataclass(slots=True)
class Guard:
    """Judges batches; travels with checkpoints as JSON.

    Args:
        spike_nats: a loss this far above the running median is a spike.
        skips_in_a_row: so many bad batches after one another mean going back.
        rollbacks_allowed: one more ends the stage.
    """

    spike_nats: float
    skips_in_a_row: int
    rollbacks_allowed: int
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_STEPS))
    skipped: int = 0
    in_a_row: int = 0
    rollbacks: int = 0
    passed_over: int = 0

    @classmethod
    def of(cls, settings: TrainSettings) -> Self:
        """A fresh guard with the bounds of a stage."""
        return cls(
            spike_nats=settings.spike_nats,
            skips_in_a_row=settings.skips_in_a_row,
            rollbacks_allowed=settings.rollbacks_allowed,
        )

    def batch_number(self, step: int, *, steps: int) -> int:
        """Which of the stage's `steps` batches `step` trains on.

        Batches that were passed over are made up for by the first ones, at the end.
        """
        return (step + self.passed_over) % steps

    def judge(self, *, loss: float, gradient_norm: float) -> Verdict:
        """What to do with the batch that gave this loss and gradient norm."""
        if not self.is_bad(loss=loss, gradient_norm=gradient_norm):
            self.losses.append(loss)
            self.in_a_row = 0
            return Verdict.APPLY
        self.skipped += 1
        self.passed_over += 1
        self.in_a_row += 1
        return Verdict.SKIP if self.in_a_row < self.skips_in_a_row else Verdict.ROLL_BACK

    def is_bad(self, *, loss: float, gradient_norm: float) -> bool:
        """Not finite, or a spike."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return True
        if len(self.losses) < FEWEST_LOSSES:
            return False
        return loss > statistics.median(self.losses) + self.spike_nats

    def rolled_back(self, *, step: int, back_to: int) -> None:
        """Take note of one return from `step` to `back_to`: what lies between is passed over.

        Raises:
            StageFailedError: there were too many; the message says what to change.
        """
        self.rollbacks += 1
        self.in_a_row = 0
        self.passed_over += step - back_to
        self.losses.clear()
        if self.rollbacks > self.rollbacks_allowed:
            raise StageFailedError(
                f"training went wrong at step {step} again after {self.rollbacks_allowed} returns "
                "to a checkpoint; lower the learning rate, or raise spike_nats if these are no "
                "spikes"
            )

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {
            "losses": list(self.losses),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "rollbacks": self.rollbacks,
            "passed_over": self.passed_over,
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        self.losses = deque((float(loss) for loss in stored["losses"]), maxlen=HISTORY_STEPS)
        self.skipped, self.in_a_row = int(stored["skipped"]), int(stored["in_a_row"])
        self.rollbacks, self.passed_over = int(stored["rollbacks"]), int(stored["passed_over"])

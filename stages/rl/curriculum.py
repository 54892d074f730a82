"""Which task families a rollout batch draws from: phases first, then dynamic weights.

Phase 1 is rule-verified tasks only; later families come in along a ramp (M1 section 4.3). Within
what is allowed, a family weighs more while its pass rate is near one half, where a group of
samples carries most signal. The weighting formula is ours: the paper names none.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m1.stages.settings import ReinforceSettings, TaskMix

RAMP_FRACTION = 0.2  # of all steps, over which later tasks reach their full share (ours)
FLOOR = 0.2  # a mastered or hopeless family keeps a fifth of its weight, so it is not forgotten
SMOOTHING = 0.2  # weight of the newest batch in the running pass rate


@dataclass(slots=True)
class Curriculum:
    """Running pass rates, and the weights that follow from them. Checkpointed as JSON."""

    settings: ReinforceSettings
    pass_rates: dict[str, float] = field(default_factory=dict)

    @property
    def families(self) -> dict[str, TaskMix]:
        """All families that may ever be drawn."""
        return {**self.settings.tasks, **self.settings.later_tasks}

    def ramp(self, step: int) -> float:
        """How far later tasks have come in at `step`, 0 to 1."""
        start = self.settings.first_phase_fraction * self.settings.steps
        length = max(1.0, RAMP_FRACTION * self.settings.steps)
        return min(1.0, max(0.0, (step - start) / length))

    def weights(self, step: int) -> dict[str, float]:
        """Share of prompts per family at `step`; sums to one."""
        raw = {}
        for name, mix in self.families.items():
            opening = self.ramp(step) if name in self.settings.later_tasks else 1.0
            rate = self.pass_rates.get(name, 0.5)
            raw[name] = mix.share * opening * (FLOOR + (1.0 - FLOOR) * 4.0 * rate * (1.0 - rate))
        total = sum(raw.values())
        return {name: weight / total for name, weight in raw.items()}

    def draw(self, step: int, count: int, rng: random.Random) -> list[str]:
        """Families of `count` prompts."""
        weights = self.weights(step)
        return rng.choices(list(weights), list(weights.values()), k=count)

    def observe(self, passes: Mapping[str, list[float]]) -> None:
        """Take in the pass rates of one rollout batch."""
        for name, values in passes.items():
            rate = sum(values) / len(values)
            before = self.pass_rates.get(name, rate)
            self.pass_rates[name] = (1.0 - SMOOTHING) * before + SMOOTHING * rate

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"pass_rates": dict(self.pass_rates)}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        self.pass_rates = {name: float(rate) for name, rate in stored["pass_rates"].items()}

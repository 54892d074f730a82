"""The generation window of a reinforce stage: when it grows, and to what (M1 section 5). Pure.

M1 grows it 40K, 48K, 56K, 64K, 72K, 80K, each time that (a) the perplexity of what is generated
has converged and (b) the 99th percentile of lengths comes near the window. The paper gives no
thresholds; those here are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CONVERGED_STEPS = 8  # ours: the newest steps, whose two halves are compared
CONVERGED_SHARE = 0.05  # ours: largest relative change of mean perplexity between the halves
NEAR_SHARE = 0.9  # ours: P99 length over the window


@dataclass(slots=True)
class WindowLadder:
    """The rungs of a stage and where it stands. Checkpointed as JSON.

    Args:
        rungs: windows in tokens, growing; the last is the stage's own.
    """

    rungs: tuple[int, ...]
    rung: int = 0
    perplexities: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.rungs or any(a >= b for a, b in zip(self.rungs, self.rungs[1:], strict=False)):
            raise ValueError(f"windows = {self.rungs}; accepted: one or more, growing")

    @property
    def window_tokens(self) -> int:
        """Longest response that may be generated now."""
        return self.rungs[self.rung]

    def observe(self, *, perplexity: float, length_p99: float) -> bool:
        """Take in one rollout batch; answers whether the window has just grown."""
        self.perplexities = [*self.perplexities, perplexity][-CONVERGED_STEPS:]
        is_near = length_p99 >= NEAR_SHARE * self.window_tokens
        if self.rung + 1 == len(self.rungs) or not (is_near and self._has_converged()):
            return False
        self.rung += 1
        self.perplexities = []  # longer responses are another distribution
        return True

    def _has_converged(self) -> bool:
        if len(self.perplexities) < CONVERGED_STEPS:
            return False
        half = CONVERGED_STEPS // 2
        early, late = _mean(self.perplexities[:half]), _mean(self.perplexities[half:])
        return abs(late - early) <= CONVERGED_SHARE * early

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"rung": self.rung, "perplexities": list(self.perplexities)}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        self.rung = min(int(stored["rung"]), len(self.rungs) - 1)
        self.perplexities = [float(value) for value in stored["perplexities"]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

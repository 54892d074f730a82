"""Remembers a request to stop until somebody is ready to hear it.

A forked worker needs seconds before it can stop in an orderly way. A SIGTERM that comes in that
time must neither kill it (the job would look failed) nor get lost (it would train on).
"""

import signal
from collections.abc import Iterable
from types import FrameType


class StopSignals:
    """Counts signals instead of dying of them."""

    def __init__(self) -> None:
        self.count = 0

    def install(self, numbers: Iterable[signal.Signals]) -> None:
        """Listen to `numbers` from now on, in the main thread."""
        for number in numbers:
            signal.signal(number, self._remember)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


#: What came before the worker of this process listened by itself.
EARLY = StopSignals()

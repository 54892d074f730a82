"""Time as a passed-in effect. Not a scheduler: three methods, so tests can own the clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where code that must be testable gets its time from."""

    def wall_seconds(self) -> float:
        """Unix time in seconds; may jump."""
        ...

    def monotonic_seconds(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block for `seconds`."""
        ...


class SystemClock:
    """The clock of this machine."""

    def wall_seconds(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic_seconds(self) -> float:
        """Seconds since boot, roughly."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block for `seconds`."""
        time.sleep(seconds)


SYSTEM_CLOCK: Clock = SystemClock()

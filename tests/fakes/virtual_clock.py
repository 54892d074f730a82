"""Time that moves only when told. Not a mock: it is a whole Clock."""

from collections.abc import Callable


class VirtualClock:
    """Wall and monotonic time can be moved apart, as when NTP steps the wall clock."""

    def __init__(self, *, wall_seconds: float = 1_000.0) -> None:
        self._wall_seconds = wall_seconds
        self._monotonic_seconds = 0.0
        self.slept_seconds = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def wall_seconds(self) -> float:
        """Unix time in seconds."""
        return self._wall_seconds

    def monotonic_seconds(self) -> float:
        """Seconds since this clock was made."""
        return self._monotonic_seconds

    def sleep(self, seconds: float) -> None:
        """Both times move on at once; `on_sleep` is what the rest of the world does meanwhile."""
        self.slept_seconds += seconds
        self.advance(seconds)
        self.on_sleep()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._wall_seconds += seconds
        self._monotonic_seconds += seconds

    def jump(self, seconds: float) -> None:
        """Step the wall clock only."""
        self._wall_seconds += seconds

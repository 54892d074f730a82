"""The outside world as a run of stages sees it: store, launcher, clock, stop. No policy."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from m1.infra.clock import SYSTEM_CLOCK, Clock
from m1.infra.errors import EXIT_INTERRUPTED, PreemptedError
from m1.infra.launch.protocol import Launcher
from m1.infra.manifest import Commit
from m1.infra.store.protocol import Store
from m1.stages.contract import Progress

#: What the jobs of training stages import, in seconds: a launcher may do it once for all of them.
PRELOAD = tuple(
    f"m1.stages.{name}" for name in ("pretrain", "sft", "extend_context", "reinforce", "evaluate")
)
WORKER_MODULE = "m1.stages.worker"
_PASSED_PREFIXES = ("AWS_", "M1_", "OMP_", "MKL_", "NCCL_", "GLOO_", "TORCH", "TRITON_", "CUDA_")


class InterruptedRunError(PreemptedError):
    """The person stopped the run; it goes on with `m1 resume`."""

    exit_code = EXIT_INTERRUPTED


class Reporter(Protocol):
    """Who is told how a stage fares."""

    def note(self, stage: str, text: str) -> None:
        """Something happened that a person may want to know."""
        ...

    def progress(self, stage: str, progress: Progress) -> None:
        """The heartbeat changed."""
        ...

    def committed(self, stage: str, commit: Commit, *, reused: bool) -> None:
        """The stage is done; `reused` when it was done before."""
        ...


class SilentReporter:
    """Tells nobody."""

    def note(self, stage: str, text: str) -> None:
        """Nothing."""

    def progress(self, stage: str, progress: Progress) -> None:
        """Nothing."""

    def committed(self, stage: str, commit: Commit, *, reused: bool) -> None:
        """Nothing."""


class Reporters:
    """Tells several."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def note(self, stage: str, text: str) -> None:
        """Pass on."""
        for reporter in self._reporters:
            reporter.note(stage, text)

    def progress(self, stage: str, progress: Progress) -> None:
        """Pass on."""
        for reporter in self._reporters:
            reporter.progress(stage, progress)

    def committed(self, stage: str, commit: Commit, *, reused: bool) -> None:
        """Pass on."""
        for reporter in self._reporters:
            reporter.committed(stage, commit, reused=reused)


class StopRequests:
    """Counts SIGINT and SIGTERM: one stops gracefully, a second kills."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen while the block runs; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        earlier = {number: signal.signal(number, self._count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEffects:
    """Everything outside that running stages needs."""

    store: Store
    launcher: Launcher
    work_root: Path  # scratch folders of attempts, below <run>/<stage>/<attempt>
    reporter: Reporter = field(default_factory=SilentReporter)
    clock: Clock = SYSTEM_CLOCK
    stop: StopRequests = field(default_factory=StopRequests)
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = WORKER_MODULE
    poll_seconds: float = 0.2
    stop_grace_seconds: float = 60.0  # ours: a step and a checkpoint
    lease_term_seconds: float = 60.0

    @contextmanager
    def warm_launcher(self) -> Iterator[None]:
        """While the block runs jobs start faster; afterwards the launcher holds nothing."""
        self.launcher.warm_up(self.environment)
        try:
            yield
        finally:
            self.launcher.close()


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the environment that jobs inherit: credentials of the store, tuning, ours."""
    return {name: value for name, value in environ.items() if name.startswith(_PASSED_PREFIXES)}

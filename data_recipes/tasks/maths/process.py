"""Compares mathematical answers in processes of their own that can be killed at any moment.

`Comparer` is the protocol; `ComparerProcess` keeps one worker warm, which forks for every
comparison. A comparison that used up its processor time was given too much by the answer:
`policy_timeout`. A worker that died or stalled otherwise is our trouble: one more try with a new
one, then `infra_error`.
"""

import atexit
import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from m1.data_recipes.tasks.task import Outcome
from m1.infra.errors import StageFailedError

CPU_SECONDS = 0.8  # ours: about 20 times the median comparison; hostile ones end well within 2 s
WALL_SECONDS = 10.0  # ours: a machine this far behind is not the answer's fault
START_SECONDS = 60.0
_WORKER = Path(__file__).with_name("worker.py")
_LOG = logging.getLogger(__name__)


class Comparer(Protocol):
    """Anything that says whether two mathematical texts mean the same."""

    def compare(self, gold: str, answer: str, *, relative_tolerance: float = 0.0) -> Outcome:
        """The outcome for LaTeX texts, already bounded in length and nesting."""
        ...


class _WorkerLostError(Exception):
    """The worker ended, stalled, or could not judge."""


class _Worker:
    """One running worker and the pipes to it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  (our own file, no shell, no arguments)
            [sys.executable, "-I", "-X", "utf8", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
        if self._reply(START_SECONDS) != "ready":
            self.kill()
            raise _WorkerLostError("it compares wrongly")

    @property
    def process_id(self) -> int:
        """Of the worker, which leads a process group of its own."""
        return self._process.pid

    def ask(self, request: dict[str, Any]) -> Outcome:
        """The worker's verdict on one request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise _WorkerLostError("it had ended") from error
        outcome = self._reply(WALL_SECONDS)
        if outcome == "infra_error":
            raise _WorkerLostError("a comparison died")
        return cast(Outcome, outcome)

    def _reply(self, seconds: float) -> str:
        assert self._process.stdout is not None
        line, deadline = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.kill()
                    raise _WorkerLostError(f"no reply within {seconds:.0f} s")
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    self.kill()
                    raise _WorkerLostError(f"it ended with {self._process.returncode}")
                line += part
        return str(json.loads(line)["outcome"])

    def kill(self) -> None:
        """End the worker and its child now, whatever they do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # a request that nobody waits for
                pipe.close()


class ComparerProcess:
    """One warm worker, replaced whenever it is lost. Safe to share between threads."""

    def __init__(self, *, cpu_seconds: float = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._has_worked = False

    def compare(self, gold: str, answer: str, *, relative_tolerance: float = 0.0) -> Outcome:
        """The outcome for one pair of texts.

        Raises:
            StageFailedError: no worker ever answered in this process: math-verify is missing or
                broken, and masking every sample would only hide it.
        """
        request = {
            "gold": gold,
            "answer": answer,
            "relative_tolerance": relative_tolerance,
            "cpu_seconds": self._cpu_seconds,
        }
        with self._lock:
            for _ in range(2):
                try:
                    return self._ask(request)
                except _WorkerLostError as error:
                    _LOG.warning("the maths worker was lost: %s", error)
                    self._end()
            if not self._has_worked:
                raise StageFailedError("the maths worker does not work: is math-verify installed?")
            return "infra_error"

    @property
    def process_id(self) -> int:
        """Of the worker, which is started if there is none: for whoever watches what it uses."""
        with self._lock:
            self._worker = self._worker or _Worker()
            return self._worker.process_id

    def close(self) -> None:
        """End the worker; the next comparison starts another one."""
        with self._lock:
            self._end()

    def _ask(self, request: dict[str, Any]) -> Outcome:
        if self._worker is None:
            self._worker = _Worker()
        outcome = self._worker.ask(request)
        self._has_worked = True
        return outcome

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def shared_comparer() -> ComparerProcess:
    """The comparer of this process; ended when the interpreter ends. A fork gets its own."""
    return _comparer_of(os.getpid())


@cache
def _comparer_of(process_id: int) -> ComparerProcess:
    comparer = ComparerProcess()

    def close() -> None:
        if os.getpid() == process_id:  # a fork inherits this call, but the worker is not its own
            comparer.close()

    atexit.register(close)
    return comparer

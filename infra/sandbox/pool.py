"""Sessions that are already running when they are asked for. Each is used once and then killed."""

import contextlib
import os
import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

from m1.infra.errors import SandboxFailedError
from m1.infra.sandbox.protocol import (
    Invocation,
    Outcome,
    Program,
    Sandbox,
    SandboxLimits,
    Session,
)
from m1.infra.sandbox.session import START_SECONDS

_RETRY_SECONDS = 0.2  # ours: between two starts that failed
_STARTERS = 2  # ours: more would only take the cores from the programs


class WarmPool:
    """Keeps sessions of a sandbox ready, and bounds how many are in use.

    A program that shares its cores with too many others runs out of wall time through no fault of
    its own; so at most `at_once` sessions are lent, and `start` waits for one to come back.

    Args:
        sandbox: starts the sessions; closed with the pool.
        ready: sessions kept started, at least 1.
        at_once: sessions in use at the same time; by default one per core.
    """

    def __init__(self, sandbox: Sandbox, *, ready: int = 4, at_once: int | None = None) -> None:
        self._sandbox = sandbox
        self._wanted = max(1, ready)
        self._lendable = threading.Semaphore(at_once or len(os.sched_getaffinity(0)))
        self._sessions: deque[Session] = deque()
        self._being_started = 0
        self._last_error: Exception | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._keep_ready, name="sandbox-starter", daemon=True)
            for _ in range(min(_STARTERS, self._wanted))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def limits(self) -> SandboxLimits:
        """What each session may use."""
        return self._sandbox.limits

    def start(self) -> Session:
        """A session that is already running; waits until one may be lent.

        Raises:
            SandboxFailedError: none could be started in time, or the pool is closed.
        """
        self._lendable.acquire()
        try:
            return _LentSession(self._take(), self._lendable)
        except SandboxFailedError:
            self._lendable.release()
            raise

    def wait_until_warm(self) -> None:
        """Return when all sessions are ready; for measurements."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._sessions) >= self._wanted, timeout=START_SECONDS
            )

    def close(self) -> None:
        """Stop starting, and kill what was not handed out."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        while self._sessions:
            self._sessions.pop().close()
        self._sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self) -> Session:
        with self._changed:
            self._changed.wait_for(
                lambda: bool(self._sessions) or self._is_closed, timeout=START_SECONDS
            )
            if self._is_closed or not self._sessions:
                raise SandboxFailedError(
                    "the pool is closed"
                    if self._is_closed
                    else f"no sandbox started in {START_SECONDS:.0f} s: {self._last_error}"
                )
            session = self._sessions.popleft()
            self._changed.notify_all()
            return session

    def _keep_ready(self) -> None:
        while self._claim_a_start():
            session: Session | None = None
            try:
                session = self._sandbox.start()
            except (SandboxFailedError, OSError) as error:
                self._last_error = error
                time.sleep(_RETRY_SECONDS)
            finally:
                self._put(session)

    def _claim_a_start(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or len(self._sessions) + self._being_started < self._wanted
            )
            self._being_started += not self._is_closed
            return not self._is_closed

    def _put(self, session: Session | None) -> None:
        with self._changed:
            self._being_started -= 1
            if session is not None:
                self._sessions.append(session)
            self._changed.notify_all()


class _LentSession:
    """A session that makes room in the pool when it is closed."""

    def __init__(self, session: Session, lendable: threading.Semaphore) -> None:
        self._session = session
        self._give_back = contextlib.ExitStack()
        self._give_back.callback(lendable.release)
        self._give_back.callback(session.close)

    def load(self, program: Program) -> None:
        """Hand over the program."""
        self._session.load(program)

    def invoke(self, invocation: Invocation) -> Outcome:
        """Run the program once."""
        return self._session.invoke(invocation)

    def close(self) -> None:
        """Kill everything in the session; a second call does nothing."""
        self._give_back.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

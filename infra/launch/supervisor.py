"""Runs one job and outlives it: `python -m m1.infra.launch.supervisor DIR PARENT GRACE N -- ...`.

A light parent and a forked torchrun agent (agent.py). The parent imports no torch: it forwards
SIGTERM and SIGINT, ends the job when its own parent dies, kills what is left, and writes
`exit.json` last. Not a restarter.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from m1.infra.launch.stop_signals import StopSignals
from m1.infra.launch.work_files import EXIT_NAME, read_stop_grace, write_exit

_SET_PARENT_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36  # orphaned workers become our children, so we can end them
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.02
_FAILED = 1


def supervisor_arguments(request: Mapping[str, Any], *, parent: int) -> list[str]:
    """The words of `main` for a request of the launcher; `parent` is whose death ends the job."""
    words = [request["work_dir"], str(parent), str(request["grace_seconds"])]
    return [*words, str(request["processes"]), "--", request["module"], *request["arguments"]]


def main(arguments: Sequence[str]) -> int:
    """Supervise one job; returns its exit code, 128 + n when signal n ended it."""
    work_dir, parent = Path(arguments[0]), int(arguments[1])
    grace_seconds, processes = float(arguments[2]), int(arguments[3])
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals = StopSignals()
    signals.install(STOP_SIGNALS)
    # held back around the fork: the agent's copy of these handlers would swallow them
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    supervisor, agent = os.getpid(), os.fork()  # a fork saves the start of a second interpreter
    if agent == 0:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
        _become_agent(supervisor, processes, grace_seconds, arguments[5:])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    # ours: the parent is watched by its number; the kernel's death signal follows the *thread*
    # that started us, and flow tasks run in threads that end early
    def stops() -> int:
        return signals.count + (os.getppid() != parent)

    def grace() -> float:
        told = read_stop_grace(work_dir)
        return grace_seconds if told is None else told

    exit_code = _wait(agent, stops=stops, grace=grace)
    _kill_descendants()
    write_exit(work_dir / EXIT_NAME, exit_code)
    return exit_code


def _become_agent(
    supervisor: int, processes: int, grace_seconds: float, command: Sequence[str]
) -> NoReturn:
    exit_code = _FAILED
    try:
        os.setsid()
        if os.getppid() != supervisor:  # it died before the death signal was asked for
            sys.exit(_FAILED)
        from m1.infra.launch.agent import run_agent  # torch: the parent must stay light

        exit_code = run_agent(
            command[0],
            command[1:],
            processes=processes,
            supervisor=supervisor,
            grace_seconds=grace_seconds,
        )
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else _FAILED
    except BaseException:  # noqa: BLE001 - a forked child must never return into the parent's code
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _wait(agent: int, *, stops: Callable[[], int], grace: Callable[[], float]) -> int:
    """Poll until the agent ends; every new stop request is passed on and may shorten the time."""
    passed_on, deadline = 0, float("inf")
    while True:
        ended, status = os.waitpid(agent, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        requested, now = stops(), time.monotonic()
        if requested > passed_on:
            passed_on, deadline = requested, min(deadline, now + grace())
            if now < deadline:
                os.kill(agent, signal.SIGTERM)
        if now >= deadline:
            _kill_descendants()
        time.sleep(_POLL_SECONDS)


def _kill_descendants() -> None:
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

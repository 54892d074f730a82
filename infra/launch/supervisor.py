"""Runs one command and outlives it: `python -m m1.infra.launch.supervisor DIR GRACE -- COMMAND`.

Forwards SIGTERM and SIGINT, ends the command when its own parent dies, and writes
`exit.json` last. Not a restarter, and imports no torch, so it costs a few megabytes.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import psutil

_SET_CHILD_SUBREAPER = 36  # prctl: orphaned workers become our children, so we can end them
_SET_PARENT_DEATH_SIGNAL = 1
_POLL_SECONDS = 0.1


def main(arguments: Sequence[str]) -> int:
    """Supervise one command; returns its exit code, 128 + n when signal n ended it."""
    parent = os.getppid()
    work_dir, grace_seconds, command = Path(arguments[0]), float(arguments[1]), arguments[3:]
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop_requested: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        stop_requested.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, remember)
    child = subprocess.Popen(  # noqa: S603 - an argument list built by the launcher
        command,
        start_new_session=True,
        preexec_fn=lambda: prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0),
    )
    # ours: the parent is watched by its number; the kernel's death signal follows the *thread*
    # that started us, and flow tasks run in threads that end early
    must_stop = lambda: bool(stop_requested) or os.getppid() != parent  # noqa: E731
    exit_code = _wait(child, must_stop=must_stop, grace_seconds=grace_seconds)
    _kill_descendants()
    _write_exit(work_dir / "exit.json", exit_code)
    return exit_code


def _wait(
    child: subprocess.Popen[bytes], *, must_stop: Callable[[], bool], grace_seconds: float
) -> int:
    deadline: float | None = None
    while child.poll() is None:
        now = time.monotonic()
        if deadline is None and must_stop():
            deadline = now + grace_seconds
            child.terminate()
        elif deadline is not None and now >= deadline:
            _kill_descendants()
        time.sleep(_POLL_SECONDS)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _kill_descendants() -> None:
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _write_exit(path: Path, exit_code: int) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"exit_code": exit_code}))
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

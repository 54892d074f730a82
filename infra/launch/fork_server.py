"""A process that imports once and forks once per job: `python -m m1.infra.launch.fork_server ...`.

Importing torch and megatron-core takes seconds, and a run starts a dozen jobs. This process
imports what its arguments name, then answers requests on a socket: each one becomes a forked
supervisor (supervisor.py) in its own session. It starts no threads and never runs a job's code
itself. When the launcher that started it is gone it ends, and the supervisors, which watch their
parent, save and stop.

One line of JSON per request and per answer; the socket is the standard input.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from m1.infra.launch import supervisor
from m1.infra.launch.work_files import LOG_NAME

_FAILED = 1


def main(preload: Sequence[str]) -> int:
    """Serve until the other end of the socket is closed."""
    # held back, not ignored: a supervisor that is stopped while it starts hears it when it listens
    signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.STOP_SIGNALS)
    problem = _import_all(preload)
    with socket.socket(fileno=os.dup(0)) as connection, connection.makefile("rb") as requests:
        signal.signal(signal.SIGCHLD, _reap)
        for line in requests:
            answer = {"error": problem} if problem else _fork(json.loads(line), connection)
            connection.sendall(json.dumps(answer).encode() + b"\n")
    return 0


def _import_all(names: Sequence[str]) -> str:
    """Import the modules; what went wrong, or nothing."""
    gc.disable()  # nothing in an import is garbage, and frozen pages stay shared after a fork
    try:
        for name in names:
            importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  (an import may raise anything; it is passed on)
        return f"{type(error).__name__}: {error}"
    finally:
        gc.freeze()
        gc.enable()
    return ""


def _reap(_number: int, _frame: FrameType | None) -> None:
    """Let no ended supervisor linger: a zombie would look alive."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def _fork(request: Mapping[str, Any], connection: socket.socket) -> dict[str, Any]:
    sys.stdout.flush()
    sys.stderr.flush()
    server, process_id = os.getpid(), os.fork()
    if process_id == 0:
        connection.close()
        _become_supervisor(request, server)
    return {"process_id": process_id}


def _become_supervisor(request: Mapping[str, Any], server: int) -> NoReturn:
    exit_code = _FAILED
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _redirect(Path(request["work_dir"]) / LOG_NAME)
        os.environ.clear()
        os.environ.update(request["environment"])
        words = supervisor.supervisor_arguments(request, parent=server)
        exit_code = supervisor.main(words)
    except BaseException:  # noqa: BLE001 - a forked child must never return into the server's code
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for source in (nothing, output):
        os.close(source)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # what was preloaded has nothing to say at the end (Triton lists leaks)

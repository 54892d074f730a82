"""What a forked child does: one invocation of one program, and never return. Stdlib only."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil  # noqa: F401 - runpy would import it in every child
import runpy
import signal
import sys

from . import lockdown  # noqa: TID251 - inside, this folder is not part of m1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

SOLUTION = "solution.py"
_FAILED = 1
_STANDARD = (0, 1, 2)


def become_program(
    config: Mapping[str, Any], invocation: Mapping[str, Any], pipes: Mapping[str, int]
) -> NoReturn:
    """Turn this child into the program; `pipes` are its stdin, stdout, stderr and value ends."""
    exit_code = _FAILED
    try:
        _prepare(config, pipes)
        exit_code = _run(invocation, pipes["value"])
    except SystemExit as error:
        exit_code = _exit_code(error)
    except BaseException as error:  # noqa: BLE001 - as the interpreter itself would
        _show(error)
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(exit_code & 0xFF)


def _prepare(config: Mapping[str, Any], pipes: Mapping[str, int]) -> None:
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in zip(_STANDARD, ("stdin", "stdout", "stderr"), strict=True):
        os.dup2(pipes[name], number)
    value = pipes["value"]
    os.closerange(3, value)
    os.closerange(value + 1, 1 << 16)
    os.chdir(config["work"])
    os.environ.update({"HOME": config["work"], "TMPDIR": config["work"], "PATH": "/usr/bin:/bin"})
    sys.path.insert(0, config["work"])
    sys.argv = [SOLUTION]
    lockdown.lock_child(config)


def _run(invocation: Mapping[str, Any], value_pipe: int) -> int:
    kind = invocation["kind"]
    if kind == "command":
        os.closerange(3, 1 << 16)
        argv = invocation["argv"]
        os.execvp(argv[0], argv)  # noqa: S606 - no shell, and this is the sandbox
    if kind == "script":
        os.close(value_pipe)
        runpy.run_path(SOLUTION, run_name="__main__")
        return 0
    value = _function(invocation)(*invocation["arguments"])
    text = json.dumps(value).encode()
    with os.fdopen(value_pipe, "wb") as pipe:
        pipe.write(text)
    return 0


def _function(invocation: Mapping[str, Any]) -> Any:
    if invocation["module"] is not None:
        found: Any = importlib.import_module(invocation["module"])
        names = invocation["function"].split(".")
    else:
        namespace = runpy.run_path(SOLUTION, run_name="solution")
        first, *names = invocation["function"].split(".")
        found = namespace[first]
    for name in names:
        found = getattr(found() if isinstance(found, type) else found, name)
    return found


def _show(error: BaseException) -> None:
    """The traceback from the program's own first line on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != SOLUTION:
        trace = trace.tb_next
    if trace is not None:
        error = error.with_traceback(trace)
    sys.excepthook(type(error), error, error.__traceback__)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    sys.stderr.write(f"{error.code}\n")
    return _FAILED

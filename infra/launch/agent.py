"""torchrun's elastic agent, called in-process. Knows nothing of what the workers do.

The same agent as `python -m torch.distributed.run --standalone`, minus interpreters. Where no GPU
driver is loaded the workers are forked from it, so torch is imported once; with a GPU they are
started as commands, because CUDA does not survive a fork.
"""

import gc
import logging
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from m1.infra.errors import EXIT_PREEMPTED
from m1.infra.launch.stop_signals import EARLY, StopSignals

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TERMINATED = 128 + signal.SIGTERM
_FAILED = 1
LONELY_SECONDS = 2.0  # ours


def run_agent(
    module: str,
    arguments: Sequence[str],
    *,
    processes: int,
    supervisor: int,
    grace_seconds: float,
) -> int:
    """Run `python -m module arguments` on every rank; returns the first bad exit code, or 0.

    A stop signal goes to the workers, so the answer is their own exit code.
    """
    passed_on = _pass_signals_on(supervisor, grace_seconds)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    gc.freeze()  # pages of what was imported stay shared with the workers
    logging.disable(logging.ERROR)  # the worker's own last lines say more than the agent's
    forked = not any(path.exists() for path in GPU_DRIVERS)
    entrypoint = _run_module if forked else sys.executable
    command = (module, *arguments) if forked else ("-u", "-m", module, *arguments)
    try:
        elastic_launch(_launch_config(processes, forked=forked), entrypoint)(*command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        exit_code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        if exit_code == _TERMINATED and passed_on.count:
            exit_code = EXIT_PREEMPTED  # it was stopped before it listened: nothing was begun
        sys.stderr.write(f"rank {rank} ended with exit code {exit_code}\n")
        return exit_code
    return 0


def _launch_config(processes: int, *, forked: bool) -> "LaunchConfig":
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"local-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.05,
        start_method="fork" if forked else "spawn",
        local_addr="127.0.0.1",
        signals_to_handle="SIGHUP",  # SIGTERM and SIGINT are ours
    )


def _pass_signals_on(supervisor: int, grace_seconds: float) -> StopSignals:
    agent, passed_on = os.getpid(), StopSignals()

    def kill_workers(_number: int, _frame: FrameType | None) -> None:
        _signal_children(signal.SIGKILL)

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() != agent:  # a worker that has just been forked
            EARLY.count += 1
            return
        passed_on.count += 1
        if os.getppid() != supervisor:  # nobody is left to count the time
            signal.setitimer(signal.ITIMER_REAL, max(grace_seconds, 0.001))
        if not _signal_children(signal.SIGTERM):
            sys.exit(_TERMINATED)

    signal.signal(signal.SIGALRM, kill_workers)
    for number in _STOP_SIGNALS:
        signal.signal(number, pass_on)
    return passed_on


def _signal_children(number: signal.Signals) -> int:
    children = psutil.Process().children()
    for child in children:
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    return len(children)


def _run_module(module: str, *arguments: str) -> None:
    """What a forked worker does: `python -m module arguments`."""
    EARLY.install((signal.SIGTERM,))
    for number in (signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.disable(logging.NOTSET)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code not in (None, 0):
            sys.stderr.write("" if isinstance(error.code, int) else f"{error.code}\n")
            sys.exit(error.code if isinstance(error.code, int) else _FAILED)
    except BaseException:  # noqa: BLE001 - as the interpreter itself would
        sys.excepthook(*sys.exc_info())
        sys.exit(_FAILED)
    finally:
        # A rank that is done waits for the others. Then SIGTERM means that there are none left;
        # so may one that came while this rank was starting.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if EARLY.count:
            signal.setitimer(signal.ITIMER_REAL, LONELY_SECONDS)

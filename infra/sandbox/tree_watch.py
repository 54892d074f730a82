"""Watches a process tree from outside, where no control group may be written.

It looks every few dozen milliseconds, so a limit can be overshot by what fits between two looks;
the resource limits of each process are the hard wall below it.
"""

import signal
from contextlib import suppress
from pathlib import Path

import psutil

from m1.infra.sandbox.protocol import Ending, SandboxLimits
from m1.infra.sandbox.scratch_bytes import folder_bytes, hidden_bytes


class TreeWatch:
    """Memory, CPU time and scratch bytes of everything below one process, which is trusted."""

    def __init__(self, root: int, limits: SandboxLimits, *, scratch: Path | None) -> None:
        self._root = root
        self._limits = limits
        self._scratch = scratch

    def begin(self) -> None:
        """Nothing of an earlier invocation is left that would have to be taken off."""

    def breach(self) -> Ending | None:
        """Which limit the tree has run into, if any."""
        tree = processes_below(self._root)
        if _memory_bytes(tree, self._limits.memory_bytes) > self._limits.memory_bytes:
            return Ending.MEMORY
        if sum(map(_cpu_seconds, tree)) > self._limits.cpu_seconds:
            return Ending.CPU_TIME
        if self._scratch and self._scratch_bytes(self._scratch, tree) > self._limits.file_bytes:
            return Ending.DISK
        return None

    def _scratch_bytes(self, scratch: Path, tree: list[psutil.Process]) -> int:
        hidden = sum(hidden_bytes(p.pid, scratch, self._limits.file_bytes) for p in tree)
        return folder_bytes(scratch, self._limits.file_bytes) + hidden


def processes_below(root: int) -> list[psutil.Process]:
    """Every descendant of a process; orphans included as long as it adopts them."""
    try:
        return psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def processes_of(user: int) -> list[psutil.Process]:
    """Every process that runs as this user id."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if process.uids().real == user:
                found.append(process)
    return found


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL to each that is still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def _memory_bytes(tree: list[psutil.Process], limit_bytes: int) -> int:
    resident = 0
    for process in tree:
        with suppress(psutil.Error):
            resident += process.memory_info().rss
    if resident <= limit_bytes:
        return resident
    return sum(map(_proportional_bytes, tree))  # pages shared after a fork count once


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system

"""One control group per session, in version 1 or 2 of the interface, where it may be written.

Counts and caps what resource limits cannot: memory, processes and CPU time of a whole tree.
"""

import itertools
import os
import time
from contextlib import suppress
from pathlib import Path

from m1.infra.errors import SandboxFailedError
from m1.infra.sandbox.protocol import Ending, SandboxLimits

ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "pids", "cpuacct")
_REMOVE_SECONDS = 2.0
_PREFIX = "m1-sandbox"
_numbers = itertools.count()


class ControlGroup:
    """The group of one session; made empty, removed by `close` once everything in it is dead."""

    def __init__(self, folders: dict[str, Path], limits: SandboxLimits) -> None:
        self._folders = folders  # by controller; all the same one in version 2
        self._cpu_seconds = limits.cpu_seconds
        self._spent_before = 0.0
        self._killed_before = 0

    def add(self, process: int) -> None:
        """Move a process in; its later children are born in."""
        for folder in set(self._folders.values()):
            (folder / "cgroup.procs").write_text(str(process))

    def begin(self) -> None:
        """An invocation begins: CPU time and kills count from here."""
        self._spent_before = self.cpu_seconds()
        self._killed_before = self._killed_for_memory()

    def breach(self) -> Ending | None:
        """Which limit the group has run into, if any."""
        if self._killed_for_memory() > self._killed_before:
            return Ending.MEMORY
        if self.cpu_seconds() - self._spent_before > self._cpu_seconds:
            return Ending.CPU_TIME
        return None

    def _killed_for_memory(self) -> int:
        for name in ("memory.events", "memory.oom_control"):
            with suppress(FileNotFoundError):
                text = (self._folders["memory"] / name).read_text()
                return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))
        return 0

    def cpu_seconds(self) -> float:
        """CPU time of everything that ever ran in here."""
        folder = self._folders["cpuacct"]
        with suppress(FileNotFoundError):
            return int((folder / "cpuacct.usage").read_text()) / 1e9
        counts = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        return int(counts["usage_usec"]) / 1e6

    def processes(self) -> list[int]:
        """Who is in here now."""
        return [int(line) for line in (self._folders["pids"] / "cgroup.procs").read_text().split()]

    def close(self) -> None:
        """Remove the group; it stays (empty, harmless) where the kernel is slow to let go."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        for folder in set(self._folders.values()):
            while folder.exists() and time.monotonic() < deadline:
                try:
                    folder.rmdir()
                except OSError:
                    time.sleep(0.005)


def find_parents(root: Path = ROOT, own: str | None = None) -> dict[str, Path] | None:
    """Folder per controller under which groups can be made; None where that is not allowed.

    Args:
        root: where the hierarchies are mounted.
        own: the text of `/proc/self/cgroup`; read from there by default.
    """
    groups = _own_groups(Path("/proc/self/cgroup").read_text() if own is None else own)
    unified = root / groups.get("", "").lstrip("/")
    candidates = [
        # version 1 nests below ourselves; version 2 forbids groups below one with processes
        {name: root / name / groups.get(name, "").lstrip("/") for name in _CONTROLLERS},
        {name: root / name for name in _CONTROLLERS},
        dict.fromkeys(_CONTROLLERS, unified.parent if unified != root else root),
    ]
    usable = next((parents for parents in candidates if _is_usable(parents)), None)
    for parent in set((usable or {}).values()):
        _sweep(parent)
    return usable


def _sweep(parent: Path) -> None:
    """Remove what processes left that were killed before they could; the kernel keeps full ones."""
    for folder in parent.glob(f"{_PREFIX}-*"):
        if not Path("/proc", folder.name.split("-")[2]).exists():
            with suppress(OSError):
                folder.rmdir()


def _own_groups(text: str) -> dict[str, str]:
    lines = (line.split(":", 2) for line in text.splitlines())
    return {name: path for _, names, path in lines for name in names.split(",")}


def _is_usable(parents: dict[str, Path]) -> bool:
    with suppress(OSError):  # version 2 hands controllers down only when told to
        if (parents["memory"] / "cgroup.subtree_control").exists():
            (parents["memory"] / "cgroup.subtree_control").write_text("+memory +pids")
    try:
        folders = _make(parents, f"m1-trial-{os.getpid()}-{next(_numbers)}")
    except OSError:
        return False
    usable = (folders["pids"] / "pids.max").exists() and any(
        (folders["memory"] / name).exists() for name in ("memory.max", "memory.limit_in_bytes")
    )
    for folder in set(folders.values()):
        folder.rmdir()
    return usable


def make_group(parents: dict[str, Path], limits: SandboxLimits) -> ControlGroup:
    """A new empty group with these limits.

    Raises:
        SandboxFailedError: the kernel refused.
    """
    name = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
    try:
        folders = _make(parents, name)
        values = {
            "memory": {
                "memory.max": limits.memory_bytes,
                "memory.swap.max": 0,
                "memory.limit_in_bytes": limits.memory_bytes,
                "memory.memsw.limit_in_bytes": limits.memory_bytes,
            },
            "pids": {"pids.max": limits.processes + 1},  # and the harness
        }
        for controller, files in values.items():
            for file, value in files.items():
                if (folders[controller] / file).exists():
                    (folders[controller] / file).write_text(str(value))
    except OSError as error:
        raise SandboxFailedError(f"control group {name}: {error}") from error
    return ControlGroup(folders, limits)


def _make(parents: dict[str, Path], name: str) -> dict[str, Path]:
    folders = {controller: parent / name for controller, parent in parents.items()}
    made: list[Path] = []
    try:
        for folder in sorted(set(folders.values())):
            folder.mkdir()
            made.append(folder)
    except OSError:
        for folder in made:
            folder.rmdir()
        raise
    return folders

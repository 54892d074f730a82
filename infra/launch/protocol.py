"""What a launcher must do. Knows neither torchrun nor a cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job; `processes` is per node, `name` is deterministic so that it can be adopted."""

    name: str
    module: str
    arguments: tuple[str, ...]
    processes: int
    work_dir: Path
    nodes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandle:
    """Enough to find a job again; `details` survives a JSON round trip."""

    launcher: str
    name: str
    details: dict[str, Any]


class JobState(StrEnum):
    """Where a job is; UNKNOWN never means failed."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """Answer of one poll; `exit_code` is set only when ENDED."""

    state: JobState
    exit_code: int | None = None
    detail: str = ""


class Launcher(Protocol):
    """Starts, watches and ends jobs."""

    def warm_up(self, environment: Mapping[str, str]) -> None:
        """Prepare for jobs with this environment, without waiting; may do nothing."""
        ...

    def submit(self, request: JobRequest) -> JobHandle:
        """Start a job."""
        ...

    def poll(self, handle: JobHandle) -> JobStatus:
        """Look at a job."""
        ...

    def logs(self, handle: JobHandle, *, offset_bytes: int = 0) -> bytes:
        """Output from `offset_bytes` on."""
        ...

    def cancel(self, handle: JobHandle, *, grace_seconds: float = 20.0) -> None:
        """Ask to stop, then kill."""
        ...

    def adopt(self, request: JobRequest) -> JobHandle | None:
        """The live job of this request, if there is one."""
        ...

    def close(self) -> None:
        """Let go of what the launcher itself holds; it may be used again."""
        ...

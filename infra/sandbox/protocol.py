"""What a sandbox must do. Knows neither bubblewrap nor Landlock, and judges nothing.

A sandbox starts sessions. A session takes one program and runs it any number of times; whatever
the program does, it can only change its own output. Expected answers never enter a session: they
are compared outside (suite.py), so there is no verdict in there to forge.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self

from m1.infra.errors import InvalidSettingError

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """What one session may use; every default is ours. Time and output are per invocation.

    Raises:
        InvalidSettingError: a limit is not positive.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 8.0  # of the whole process tree
    memory_bytes: int = 512 * MEBIBYTE  # of the whole process tree, scratch files included
    output_bytes: int = MEBIBYTE  # standard output and error together, and the returned value
    processes: int = 48  # processes and threads alive at once
    file_bytes: int = 64 * MEBIBYTE  # of one file, and of the scratch folder as a whole
    open_files: int = 128  # per process

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not value > 0:
                raise InvalidSettingError(field=limit.name, value=value, accepted="above 0")

    def as_mapping(self) -> dict[str, float]:
        """Each limit by its name."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Python source, run as `solution.py`, and the files that lie beside it (relative paths)."""

    source: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Run the source as the main program with this standard input."""

    stdin: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Call a function of the source: `name`, or `Class.method` on a fresh instance.

    With `module` the function is looked up in that importable module instead of the source;
    modules that the sandbox has preloaded cost nothing.
    """

    function: str
    arguments: tuple[Any, ...] = ()  # JSON values
    module: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Run an argument list in the folder of the files. Its exit code is the program's own word."""

    argv: tuple[str, ...]
    stdin: bytes = b""


Invocation = Script | Call | Command


class Ending(StrEnum):
    """Why an invocation is over."""

    EXITED = "exited"  # by itself: exit code, or minus the signal that ended it
    WALL_TIME = "wall time"
    CPU_TIME = "cpu time"
    MEMORY = "memory"
    OUTPUT = "output"
    DISK = "disk"
    BROKEN = "broken"  # the session was destroyed from within


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one invocation left. Everything here is the program's own doing, except the ending."""

    ending: Ending
    exit_code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    value_json: str | None = None  # what a called function returned
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def is_out_of_time(self) -> bool:
        """Whether the policy, and not the sandbox, ran out of time."""
        return self.ending in (Ending.WALL_TIME, Ending.CPU_TIME)


class Verdict(StrEnum):
    """What a program's answer is worth; `infra_error` masks the sample and never counts as 0."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    POLICY_TIMEOUT = "policy_timeout"
    INFRA_ERROR = "infra_error"


class Session(Protocol):
    """One isolated place for one program. A context manager: leaving it kills everything in it."""

    def load(self, program: Program) -> None:
        """Hand over the program; nothing of it runs yet."""
        ...

    def invoke(self, invocation: Invocation) -> Outcome:
        """Run the program once; returns within the wall time plus a second."""
        ...

    def close(self) -> None:
        """Kill every process of the session and forget its files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Sandbox(Protocol):
    """Starts sessions, all with the same limits."""

    @property
    def limits(self) -> SandboxLimits:
        """What each session may use."""
        ...

    def start(self) -> Session:
        """A session without a program.

        Raises:
            SandboxFailedError: it could not be started.
        """
        ...

    def close(self) -> None:
        """End every session that was prepared and not handed out."""
        ...

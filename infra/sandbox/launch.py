"""What every start of a harness has in common: its configuration, its process, its last words."""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from m1.infra.errors import SandboxFailedError
from m1.infra.sandbox.protocol import SandboxLimits
from m1.infra.sandbox.seccomp import seccomp_filter
from m1.infra.sandbox.session import ChannelSession

_MOST_SAID = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """What programs may import beyond the standard library, and what is imported beforehand."""

    import_paths: tuple[Path, ...] = ()
    preload: tuple[str, ...] = ()

    @classmethod
    def of(cls, import_paths: Sequence[Path], preload: Sequence[str]) -> "Packages":
        """With every path resolved."""
        resolved = tuple(path.resolve() for path in import_paths)
        return cls(import_paths=resolved, preload=tuple(preload))


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessConfig:
    """What a harness is told: descriptors, rights to give up, limits of each process."""

    channel: int  # descriptor of its end of the socket
    seccomp: int  # descriptor of its filter
    work: str  # the writable folder
    user: int | None  # becomes this user; None stays what it is
    output_bytes: int
    rlimits: Mapping[str, int]
    import_paths: tuple[str, ...]
    preload: tuple[str, ...]
    landlock: int | None = None  # descriptor of its ruleset
    is_scoped: bool = False  # Landlock confines signals

    def text(self) -> str:
        """As its only argument."""
        return json.dumps(asdict(self))


def resource_limits(limits: SandboxLimits, *, has_group: bool, others: int = 0) -> dict[str, int]:
    """Limits of each process by the name in `resource`.

    Args:
        limits: of the whole session.
        has_group: a control group counts memory, so the address space need not be capped (numeric
            libraries reserve far more than they use).
        others: processes and threads of the same user that are not the sandbox's.
    """
    rlimits = {
        "RLIMIT_CPU": math.ceil(limits.cpu_seconds) + 1,  # the watch is the finer one
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_NPROC": limits.processes + 1 + others,  # and the harness
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    return rlimits if has_group else rlimits | {"RLIMIT_AS": limits.memory_bytes}


def seal_filter(*, network: bool, metadata: bool = True) -> int:
    """A descriptor from which the harness reads its seccomp filter."""
    with tempfile.TemporaryFile() as file:
        file.write(seccomp_filter(network=network, metadata=metadata))
        file.flush()
        return os.dup(file.fileno())


class HarnessProcess:
    """A started harness, or what bubblewrap became; it owns what it says before it is ready."""

    def __init__(self, command: Sequence[str], descriptors: Sequence[int]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read after the process has ended
        self.process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env={},  # /proc/1/environ inside shows what the first process was started with
            cwd="/",
            pass_fds=descriptors,
            start_new_session=True,
        )

    def failed(self, session: ChannelSession, error: Exception) -> SandboxFailedError:
        """End the session; the error together with the process's own words."""
        session.close()
        self._errors.seek(0)
        said = self._errors.read(_MOST_SAID).decode("utf-8", "replace").strip()
        self.is_started()
        return SandboxFailedError(f"{error}; {said}" if said else str(error))

    def is_started(self) -> None:
        """From here on its words are of no interest."""
        self._errors.close()

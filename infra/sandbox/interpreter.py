"""Which Python runs inside, and what it must be able to read. Nothing is started here."""

import functools
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m1.infra.errors import SandboxUnavailableError

SYSTEM_FOLDERS = (Path("/usr"), Path("/lib"), Path("/lib64"), Path("/bin"))
_OTHERS = (Path("/usr/bin/python3"), Path("/usr/local/bin/python3"))
_INSIDE = Path(__file__).resolve().parent / "inside"
_START = "import sys; sys.path.insert(0, sys.argv.pop()); from inside.harness import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python and the folders that it needs."""

    executable: Path
    prefix: Path

    def folders(self, import_paths: Sequence[Path]) -> list[Path]:
        """Everything that must be readable inside, each existing, no duplicates."""
        wanted = [*SYSTEM_FOLDERS, self.prefix, _INSIDE, *import_paths]
        return list(dict.fromkeys(path for path in wanted if path.exists()))

    def command(self, config: str) -> list[str]:
        """The argument list that starts the harness: isolated, no site packages, UTF-8."""
        flags = ["-I", "-S", "-X", "utf8"]
        return [os.fspath(self.executable), *flags, "-c", _START, config, os.fspath(_INSIDE.parent)]


def own_interpreter() -> Interpreter:
    """The Python that runs this."""
    executable = Path(sys.executable).resolve()
    return Interpreter(executable=executable, prefix=Path(sys.base_prefix).resolve())


@functools.cache
def public_interpreter() -> Interpreter:
    """A Python that every user of this machine may read; our own if it is one.

    Raises:
        SandboxUnavailableError: there is none.
    """
    own = own_interpreter()
    if _is_public(own.executable) and _is_public(own.prefix):
        return own
    for path in _OTHERS:
        executable = path.resolve()
        if executable.exists() and _is_public(executable):
            return Interpreter(executable=executable, prefix=executable.parent.parent)
    raise SandboxUnavailableError(
        f"{own.executable} can only be read by its owner and there is no /usr/bin/python3; "
        "install a Python outside the home folder"
    )


def _is_public(path: Path) -> bool:
    return all(step.stat().st_mode & stat.S_IXOTH for step in (path, *path.parents))

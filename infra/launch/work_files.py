"""The small files through which launcher, supervisor and worker speak. No processes here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HANDLE_NAME = "handle.json"
EXIT_NAME = "exit.json"
WORKER_EXIT_NAME = "worker_exit.json"
STOP_NAME = "stop.json"
LOG_NAME = "job.log"
ANSWER_NAMES = (HANDLE_NAME, EXIT_NAME, WORKER_EXIT_NAME, STOP_NAME)


def write_exit(path: Path, exit_code: int) -> None:
    """Write an exit code so that it is either there whole or not at all."""
    write_json(path, {"exit_code": exit_code})


def read_exit(path: Path) -> int | None:
    """The exit code in a file; None when there is none that can be read."""
    value = _read(path).get("exit_code")
    return value if isinstance(value, int) else None


def write_stop_grace(work_dir: Path, grace_seconds: float) -> None:
    """Tell the supervisor how long the next stop signal leaves the job."""
    write_json(work_dir / STOP_NAME, {"grace_seconds": grace_seconds})


def read_stop_grace(work_dir: Path) -> float | None:
    """What `write_stop_grace` left, or None."""
    value = _read(work_dir / STOP_NAME).get("grace_seconds")
    return float(value) if isinstance(value, int | float) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write atomically."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

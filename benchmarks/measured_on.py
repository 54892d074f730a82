"""Where a number was measured: commit, machine, how busy it was. Shared by the benchmarks."""

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, str]:
    """What belongs beside every number, by name; call it before the measurement begins."""
    processor = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + (" and changes" if _is_changed() else ""),
        "processor": f"{processor}, {len(os.sched_getaffinity(0))} cores",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    }


def _is_changed() -> bool:
    """Whether the code that is measured is not the commit's."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()

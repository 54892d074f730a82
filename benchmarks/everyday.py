"""How fast does it feel? Answers of the command line, training speed, over a finished toy run.

    .venv/bin/python benchmarks/everyday.py --run toy

Needs a committed run of the toy preset in the store (M1_STORE or the default). Writes
`benchmarks/results/<date>-everyday.md`: medians of whole processes, and the tokens per second of a
pretraining stage at 512-token windows, 4 a step, on the ranks of the preset.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from measured_on import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPEATS = 5
SPEED = {
    "pretrain.window_tokens": 512,
    "pretrain.windows_per_step": 4,
    "pretrain.micro_batch_windows": 2,
    "pretrain.steps": 40,
}


def m1(*words: str) -> str:
    """One command to its end; its output."""
    command = [sys.executable, "-m", "m1.flows.cli", *words]
    return subprocess.run(command, text=True, check=True, capture_output=True).stdout


def median_seconds(words: Sequence[str]) -> float:
    """Median wall time of the command as a process, after one that warms the file cache."""
    m1(*words)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        m1(*words)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def training_speed(run: str) -> float:
    """Median tokens per second of the logged steps of a pretraining stage of its own."""
    name = f"{run}-speed-{int(time.time())}"
    changes = [word for key, value in SPEED.items() for word in ("--set", f"{key}={value}")]
    m1("fork", run, name, "--from", "pretrain", *changes)
    m1("run", "--run", name, "--until", "pretrain")
    stages = json.loads(m1("status", name, "--json"))["stages"]
    metrics = next(stage["metrics"] for stage in stages if stage["name"] == "pretrain")
    return float(metrics["tokens_per_second"])


def main() -> int:
    """Measure everything, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="toy", help="a committed run of the toy preset")
    run, where = parser.parse_args().run, machine()
    rows = [
        ("`m1 --help`, seconds", "below 0.3", f"{median_seconds(['--help']):.2f}"),
        ("`m1 status RUN`, seconds", "below 1", f"{median_seconds(['status', run]):.2f}"),
        (
            "`m1 run` of a committed run, seconds",
            "below 8",
            f"{median_seconds(['run', '--run', run]):.2f}",
        ),
        (
            "training, tokens per second at 512 x 4",
            "at least 4,600",
            f"{training_speed(run):,.0f}",
        ),
    ]
    lines = ["# Everyday speed", ""]
    lines += [f"- {name}: {value}" for name, value in where.items()]
    lines += [f"- medians of {REPEATS} processes", ""]
    lines += ["| what | asked | measured |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-everyday.md"
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

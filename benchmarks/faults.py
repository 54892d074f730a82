"""Does every fault of the table end in one of three words: recovered, refused, contained?

    make faults            the form that CI runs
    make faults LONG=1     the night's form: twenty times the tries

Runs the tests that prove a row of `tests/faults/rows.py` and writes
`benchmarks/faults/<date>.md` and `.json`. A test that fails, or a row without a test, has none of
the three words; the first ends with exit code 1, the second is listed.
"""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "faults"
sys.path.insert(0, str(ROOT))

from m1.flows.stage_run import FAILURES_IN_A_ROW, PREEMPTIONS_IN_A_ROW  # noqa: E402
from m1.infra.store.s3 import make_client  # noqa: E402
from tests.faults.rows import ALSO, ROWS, SCALE  # noqa: E402

ROOMS = ("faults", "security", "unit", "integration")
PROPERTIES = ("seed", "tries", "violations", "recovery_seconds", "recovery_virtual_seconds")


@dataclass(kw_only=True)
class Row:
    """What was seen of one fault."""

    number: int
    fault: str
    endings: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    tests: int = 0
    tries: int = 0
    violations: int = 0
    seeds: set[str] = field(default_factory=set)
    recovery_seconds: list[float] = field(default_factory=list)
    recovery_virtual_seconds: list[float] = field(default_factory=list)

    @property
    def word(self) -> str:
        """How the fault ends."""
        return "FAILED" if self.failed else ", ".join(sorted(self.endings)) or "-"


class Table:
    """A pytest plugin: keeps the tests that prove a row, and counts what they say."""

    def __init__(self) -> None:
        self.rows = {number: Row(number=number, fault=fault) for number, fault in ROWS.items()}
        self._proofs: dict[str, list[tuple[tuple[int, ...], str]]] = {}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Everything that proves nothing is left out."""
        for item in items:
            proofs = [(m.args, m.kwargs["ending"]) for m in item.iter_markers("fault")]
            proofs += [proof for start, proof in ALSO.items() if item.nodeid.startswith(start)]
            if proofs:
                self._proofs[item.nodeid] = proofs
        left_out = [item for item in items if item.nodeid not in self._proofs]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid in self._proofs]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        if report.when != "call" and not report.failed and not report.skipped:
            return
        for numbers, ending in self._proofs[report.nodeid]:
            for number in numbers:
                _count(self.rows[number], report, ending)


def _count(row: Row, report: pytest.TestReport, ending: str) -> None:
    said = {name: value for name, value in report.user_properties if name in PROPERTIES}
    row.tests += 1
    row.tries += int(said.get("tries", 1))
    row.violations += int(said.get("violations", 0))
    row.seeds |= {str(said["seed"])} if "seed" in said else set()
    row.recovery_seconds += said.get("recovery_seconds", [])
    row.recovery_virtual_seconds += said.get("recovery_virtual_seconds", [])
    if report.passed:
        row.endings.add(ending)
    else:
        row.failed.append(report.nodeid)


def retry_budget() -> str:
    """How often anything is tried again, as one product."""
    client = make_client("http://127.0.0.1:1")
    requests = client.meta.config.retries["total_max_attempts"]
    client.close()
    return (
        f"a store call: {requests} requests; a stage: {FAILURES_IN_A_ROW} failures or "
        f"{PREEMPTIONS_IN_A_ROW} preemptions in a row without a new checkpoint; "
        f"Prefect and torchrun: no retries of their own; so a call is sent at most "
        f"{requests * FAILURES_IN_A_ROW} times before a person is asked"
    )


def _quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def _recovery(row: Row) -> str:
    parts = []
    for values, unit in ((row.recovery_seconds, "s"), (row.recovery_virtual_seconds, "virtual s")):
        if values:
            parts.append(f"{_quantile(values, 0.5):.1f} / {_quantile(values, 0.95):.1f} {unit}")
    return "; ".join(parts)


def _document(table: Table, facts: dict[str, Any]) -> str:
    lines = ["# How every fault ends", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += [
        "", "| row | fault | ends | tests | tries | violations | seed | recovery p50 / p95 |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in table.rows.values():
        seeds = "; ".join(sorted(row.seeds))
        cells = (row.number, row.fault, row.word, row.tests, row.tries, row.violations, seeds)
        lines.append("| " + " | ".join(str(c) for c in cells) + f" | {_recovery(row)} |")
    return "\n".join(lines) + "\n"


def _facts(seconds: float, selected: list[str]) -> dict[str, Any]:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"

    return {
        "scale": f"{SCALE:g} (1 is the form that CI runs)",
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "seconds": round(seconds),
        "tests": " ".join(selected) or "all; a row that ends in - has none yet",
        "retry budget": retry_budget(),
    }


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "none")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "none")
    print(f"retry budget: {retry_budget()}")
    table, started = Table(), time.monotonic()
    folders = arguments or [str(ROOT / "tests" / room) for room in ROOMS]
    code = pytest.main(["-q", "-p", "no:cacheprovider", *folders], plugins=[table])
    facts = _facts(time.monotonic() - started, arguments)
    document = _document(table, facts)
    print(document)
    RESULTS.mkdir(exist_ok=True)
    name = f"{datetime.now(UTC):%Y-%m-%d}" + ("" if SCALE == 1 else f"-scale-{SCALE:g}")
    (RESULTS / f"{name}.md").write_text(document)
    rows = [{**asdict(row), "ends": row.word} for row in table.rows.values()]
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts, "rows": rows}, default=sorted))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

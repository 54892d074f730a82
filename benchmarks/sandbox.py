"""How fast is untrusted code run? Start from the warm pool, throughput, and what warmth is worth.

    .venv/bin/python benchmarks/sandbox.py

Writes `benchmarks/results/<date>-sandbox.md` and `.json`: per kind of isolation the time from
asking for a session to the program's first output, runs per second, hardware, load and commit.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measured_on import machine

from m1.infra.errors import SandboxUnavailableError
from m1.infra.sandbox.bubblewrap import BubblewrapSandbox
from m1.infra.sandbox.landlock_sandbox import LandlockSandbox
from m1.infra.sandbox.pool import WarmPool
from m1.infra.sandbox.protocol import Call, Program, Sandbox, SandboxLimits, Script

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KINDS = (BubblewrapSandbox, LandlockSandbox)
HELLO = Program(source="print(sum(map(int, input().split())))")
ADD = Program(source="def add(a, b): return a + b")
START_P50_SECONDS = 0.040  # the number
RUNS_PER_SECOND = 20.0  # the number, on two cores


def once(sandbox: Sandbox) -> float:
    """Seconds from asking for a session to the answer of a one-line program."""
    started = time.perf_counter()
    with sandbox.start() as session:
        session.load(HELLO)
        outcome = session.invoke(Script(stdin=b"1 2"))
        seconds = time.perf_counter() - started
    if outcome.stdout != b"3\n":
        raise RuntimeError(f"the program did not run: {outcome}")
    return seconds


def start_only(pool: WarmPool) -> float:
    """Seconds from asking for a session to having handed over the program."""
    pool.wait_until_warm()
    started = time.perf_counter()
    with pool.start() as session:
        session.load(HELLO)
        return time.perf_counter() - started


def warm(pool: WarmPool) -> float:
    """`once`, with a pool that had time to fill."""
    pool.wait_until_warm()
    return once(pool)


def times(measure: Callable[[], float], count: int) -> dict[str, float]:
    """p50, p99 and minimum in milliseconds."""
    seconds = sorted(measure() for _ in range(count))
    return {
        "p50_ms": 1e3 * statistics.median(seconds),
        "p99_ms": 1e3 * seconds[min(count - 1, int(0.99 * count))],
        "min_ms": 1e3 * seconds[0],
    }


def cpu_seconds() -> float:
    """CPU time of this process and of everything it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def throughput(pool: WarmPool, count: int) -> dict[str, float]:
    """Fresh sandbox, one run, kill: how many a second with one thread per core."""
    cores, spent, started = len(os.sched_getaffinity(0)), cpu_seconds(), time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(lambda _: once(pool), range(count)))
    seconds = time.perf_counter() - started
    return {
        "runs_per_second": count / seconds,
        "cpu_ms_per_run": 1e3 * (cpu_seconds() - spent) / count,
    }


def calls_per_second(sandbox: Sandbox, count: int) -> float:
    """Calls a second in one session, each in a child of its own."""
    with sandbox.start() as session:
        session.load(ADD)
        started = time.perf_counter()
        for number in range(count):
            session.invoke(Call(function="add", arguments=(number, 1)))
        return count / (time.perf_counter() - started)


def measure(kind: type[BubblewrapSandbox | LandlockSandbox], count: int) -> dict[str, Any]:
    """Everything about one way of isolating."""
    sandbox = kind(SandboxLimits())
    with WarmPool(sandbox) as pool:
        return {
            "start_warm": times(lambda: start_only(pool), count),
            "run_warm": times(lambda: warm(pool), count),
            "run_cold": times(lambda: once(sandbox), count),
            **throughput(pool, 2 * count),
            "calls_per_second_in_one_session": calls_per_second(sandbox, count),
        }


def table(results: dict[str, dict[str, Any]], where: dict[str, str]) -> str:
    """The Markdown file."""
    lines = ["# Sandbox: starting and running untrusted code", ""]
    lines += [f"- {name}: {value}" for name, value in where.items()]
    lines += ["", f"| measured | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    for name in ("start_warm", "run_warm", "run_cold"):
        cells = (
            f"{r[name]['p50_ms']:.1f} / {r[name]['p99_ms']:.1f} (min {r[name]['min_ms']:.1f})"
            for r in results.values()
        )
        lines.append(f"| {name.replace('_', ', ')}: p50 / p99 ms | {' | '.join(cells)} |")
    for name in ("runs_per_second", "cpu_ms_per_run", "calls_per_second_in_one_session"):
        cells = (f"{r[name]:.1f}" for r in results.values())
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += ["", "start: session asked for to program handed over. run: to its answer. A run is a"]
    lines += ["fresh sandbox, one program, and the kill of everything in it.", ""]
    for claim, holds in claims(results).items():
        lines.append(f"- {claim}: {'holds' if holds else '**missed**'}")
    return "\n".join(lines) + "\n"


def claims(results: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """The issue's numbers, each with whether it holds here."""
    answers = {}
    for name, result in results.items():
        start = result["start_warm"]["p50_ms"]
        answers[f"{name}: start p50 under 40 ms from the warm pool"] = start < (
            1e3 * START_P50_SECONDS
        )
        answers[f"{name}: at least 20 runs a second"] = result["runs_per_second"] >= RUNS_PER_SECOND
    return answers


def main() -> int:
    """Measure what this machine has, write the files, fail if a claim was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="samples per number")
    count = parser.parse_args().count
    where, results = machine(), {}
    for kind in KINDS:
        try:
            results[kind.__name__] = measure(kind, count)
        except SandboxUnavailableError as error:
            print(error)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-sandbox.md"
    path.with_suffix(".json").write_text(
        json.dumps({"machine": where, "results": results}, indent=1, sort_keys=True) + "\n"
    )
    path.write_text(table(results, where))
    print(path.read_text())
    return int(not all(claims(results).values()))


if __name__ == "__main__":
    sys.exit(main())

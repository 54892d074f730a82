"""What do problems and verdicts cost, and can a hostile answer stall a verifier?

    .venv/bin/python benchmarks/verifiers.py

Writes `benchmarks/results/<date>-verifiers.md`: for every family the milliseconds to make a problem
and to check its answer, how many different easiest problems there are at least, and the slowest
hostile answer; for maths the seconds of each hostile case. Times are of the processor, so that
the load of the machine does not enter, unless they say wall.
"""

import json
import os
import platform
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from m1.data_recipes.tasks.families import FAMILIES, Task
from m1.data_recipes.tasks.maths import judge_maths
from m1.data_recipes.tasks.maths.process import ComparerProcess

RESULTS = Path(__file__).resolve().parent / "results"
MOST_SECONDS = 2.0  # the bound on any verdict
DRAWS = 400
HOSTILE = (
    "9" * 1_000_000,
    "(" * 4096,
    " " * 4096,
    " :" * 2048,
    "A:1 " * 1024,
    "1 " * 2048,
    "RL" * 2048,
    "-" * 4096,
    "9**9**9**9",
    '{"a":' * 800,
    "<<" * 10_000,
)
HOSTILE_MATHS = {
    "9^9^9^9": "9^9^9^9",
    "9^{9^{9^{9}}}": "9^{9^{9^{9}}}",
    "3000 nested brackets": "(" * 3000 + "1" + ")" * 3000,
    "24 nested brackets": "(" * 24 + "1" + ")" * 24,
    "sum of 400 terms": "+".join(["x"] * 400),
    "100000!!!": "100000!!!",
    "binomial of ten million": r"\binom{10000000}{5000000}",
    "double integral": r"\int_0^1 \int e^{x^2} \sin(x^{x}) dx",
    "999 nines": "9" * 999,
    "ten megabytes": "a" * 10_000_000,
}


def _seconds(act: Callable[[], object]) -> float:
    """Processor time of this process."""
    before = time.process_time()
    act()
    return time.process_time() - before


def _hostile_maths(comparer: ComparerProcess, text: str) -> dict[str, str | float]:
    """One hostile answer to a warm worker: outcome, processor time of all processes, wall time."""
    worker = psutil.Process(comparer.process_id)
    before, started = _used(worker), time.monotonic()
    outcome = judge_maths("10", text, comparer=comparer)
    wall = time.monotonic() - started
    return {"outcome": outcome, "processor_s": _used(worker) - before, "wall_s": wall}


def _used(worker: psutil.Process) -> float:
    """Seconds of this process, the worker and the worker's ended children."""
    return sum(worker.cpu_times()[:4]) + time.process_time()


def _draw(name: str, difficulty: int, seed: int) -> Task:
    family = FAMILIES[name]
    problem = family.make(random.Random(seed), difficulty=difficulty)  # noqa: S311
    return Task(
        id=str(seed),
        domain=family.domain,
        family=name,
        prompt=problem.prompt,
        answer=problem.answer,
        difficulty=difficulty,
        seed=seed,
        puzzle=problem.puzzle,
    )


def measure(name: str) -> dict[str, float]:
    """One family: milliseconds per problem and per check, variety, slowest hostile answer."""
    judge = FAMILIES[name].judge
    hard = [_draw(name, 10, seed) for seed in range(20)]
    prompts = {_draw(name, 1, seed).prompt for seed in range(DRAWS)}
    return {
        "make_ms": _seconds(lambda: [_draw(name, 10, seed) for seed in range(20)]) * 50,
        "check_ms": _seconds(lambda: [judge(task, task.answer) for task in hard]) * 50,
        "distinct_of_400_easiest": len(prompts),
        "hostile_s": max(_seconds(lambda text=text: judge(hard[0], text)) for text in HOSTILE),
    }


def main() -> None:
    """Measure everything, then write the table."""
    families = {name: measure(name) for name in FAMILIES}
    comparer = ComparerProcess()
    maths = {name: _hostile_maths(comparer, text) for name, text in HOSTILE_MATHS.items()}
    comparer.close()
    slowest = max(row["hostile_s"] for row in families.values())
    lines = [
        f"# Verifiers, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{platform.machine()}, {os.cpu_count()} processor(s), Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}.",
        "",
        f"Slowest hostile answer over all families: {slowest * 1000:.1f} ms "
        f"(asked: under {MOST_SECONDS:.0f} s).",
        "",
        "| family | make, difficulty 10, ms | check, ms | different of 400 easiest | hostile, ms |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['make_ms']:.2f} | {row['check_ms']:.2f} "
            f"| {row['distinct_of_400_easiest']:.0f} | {row['hostile_s'] * 1000:.1f} |"
            for name, row in families.items()
        ),
        "",
        "| maths answer | outcome | processor, s | wall, s |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['outcome']} | {row['processor_s']:.2f} | {row['wall_s']:.2f} |"
            for name, row in maths.items()
        ),
    ]
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-verifiers"
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    stem.with_suffix(".json").write_text(
        json.dumps({"families": families, "maths": maths}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()

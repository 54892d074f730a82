"""Is learning visible at every stage? Runs the toy pipeline over seeds and checks each claim.

    .venv/bin/python benchmarks/learning.py --seeds 1 2 3

Writes `benchmarks/results/<date>-learning.md` and `.json`: per seed and stage what was measured,
each claim of the issue beside its number, hardware, versions and commit.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measured_on import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EXTENSIONS = ("extend-32k", "extend-128k", "extend-512k", "extend-1m")

Metrics = Mapping[str, Mapping[str, Any]]


def _greedy(stage: Mapping[str, Any], families: list[str]) -> float:
    return min(stage["accuracy_by_task"][name]["greedy"] for name in families)


def _sampled(stage: Mapping[str, Any], families: list[str]) -> float:
    return sum(stage["accuracy_by_task"][name]["sampled"] for name in families) / len(families)


def _first_rl(stages: Metrics) -> list[str]:
    return list(stages["reinforce-40k"]["accuracy_by_task"])


def _drop(stage: Mapping[str, Any]) -> float:
    return float(stage["new_window_loss_before"] - stage["new_window_loss"])


# claim -> (measure, test)
CLAIMS: dict[str, tuple[Callable[[Metrics], float], Callable[[float], bool]]] = {
    "pretrain: nats under the unigram entropy, at least 1.8": (
        lambda s: s["pretrain"]["under_unigram"],
        lambda x: x >= 1.8,
    ),
    "sft: accuracy before, at most 0.02": (
        lambda s: s["sft"]["accuracy_before"],
        lambda x: x <= 0.02,
    ),
    "sft: sampled on the RL tasks, 0.3 to 0.65": (
        lambda s: _sampled(s["sft"], _first_rl(s)),
        lambda x: 0.3 <= x <= 0.65,
    ),
    "sft: greedy on the RL tasks, at least 0.8": (
        lambda s: _greedy(s["sft"], _first_rl(s)),
        lambda x: x >= 0.8,
    ),
    **{
        f"{name}: loss in the new window falls by at least 0.15": (
            lambda s, name=name: _drop(s[name]),
            lambda x: x >= 0.15,
        )
        for name in EXTENSIONS
    },
    **{
        f"{name}: of which by training, above 0": (
            lambda s, name=name: s[name]["drop_by_training"],
            lambda x: x > 0.0,
        )
        for name in EXTENSIONS
    },
    "extension: short window loses at most 0.15": (
        lambda s: s["extend-1m"]["short_loss"] - s["extend-32k"]["short_loss_before"],
        lambda x: x <= 0.15,
    ),
    "extension: sampled accuracy falls by at most 0.05": (
        lambda s: s["sft"]["accuracy"] - s["extend-1m"]["accuracy"],
        lambda x: x <= 0.05,
    ),
    "reinforce-40k: reward gain, at least 0.25": (
        lambda s: s["reinforce-40k"]["reward_last"] - s["reinforce-40k"]["reward_first"],
        lambda x: x >= 0.25,
    ),
    "reinforce-80k: reward gain, above 0": (
        lambda s: s["reinforce-80k"]["reward_last"] - s["reinforce-80k"]["reward_first"],
        lambda x: x > 0.0,
    ),
    "reinforce-80k: change on the first tasks, at least -0.03": (
        lambda s: (
            _sampled(s["reinforce-80k"], _first_rl(s)) - _sampled(s["reinforce-40k"], _first_rl(s))
        ),
        lambda x: x >= -0.03,
    ),
    "export: largest difference of logits, below 1e-3": (
        lambda s: s["export"]["largest_logit_difference"],
        lambda x: x < 1e-3,
    ),
}


def m1(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """One command of the pipeline."""
    argv = [sys.executable, "-m", "m1.flows.cli", *words]
    return subprocess.run(argv, text=True, check=True, **kwargs)


def run_seed(seed: int, overrides: list[str]) -> dict[str, Any]:
    """Run (or finish) the pipeline with one seed; seconds and the metrics of every stage."""
    run, started = f"learning-seed-{seed}", time.monotonic()
    sets = [word for value in [f"run.seed={seed}", *overrides] for word in ("--set", value)]
    m1("run", "--run", run, *sets)
    seconds = time.monotonic() - started
    status = json.loads(m1("status", run, "--json", stdout=subprocess.PIPE).stdout)
    return {
        "seed": seed,
        "seconds": seconds,
        "stages": {stage["name"]: stage for stage in status["stages"]},
    }


def check(measured: Mapping[str, Any]) -> dict[str, tuple[float, bool]]:
    """Each claim with its number and whether it holds."""
    stages = {name: stage["metrics"] for name, stage in measured["stages"].items()}
    answers = {}
    for claim, (measure, holds) in CLAIMS.items():
        value = float(measure(stages))
        answers[claim] = (value, holds(value))
    return answers


def write(results: list[dict[str, Any]], where: Mapping[str, str]) -> Path:
    """The dated files; returns the Markdown one."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-learning.md"
    path.with_suffix(".json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    checked = [check(result) for result in results]
    lines = ["# Learning at every stage of the toy pipeline", ""]
    lines += [f"- {name}: {value}" for name, value in where.items()]
    head = " | ".join(f"seed {result['seed']}" for result in results)
    lines += ["", f"| claim | {head} |", "|---|" + "---|" * len(results)]
    for claim in CLAIMS:
        cells = [
            f"{value:.3g}" + ("" if holds else " **missed**")
            for value, holds in (answers[claim] for answers in checked)
        ]
        lines.append(f"| {claim} | {' | '.join(cells)} |")
    seconds = " | ".join(f"{result['seconds']:.0f}" for result in results)
    lines.append(f"| wall seconds of the whole run | {seconds} |")
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> int:
    """Run all seeds, write the table, fail if a claim was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    where = machine()
    results = [run_seed(seed, arguments.overrides) for seed in arguments.seeds]
    path = write(results, where)
    print(path.read_text())
    return int(any(not holds for result in results for _, holds in check(result).values()))


if __name__ == "__main__":
    sys.exit(main())

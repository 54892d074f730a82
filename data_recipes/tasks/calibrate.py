"""At which difficulty of a family does a solver pass neither too rarely nor too often?

SynLogic's rule (M1 section 4.1): a strong solver must pass sometimes (upper bound of difficulty),
a weak one must not pass always (lower bound). As a library: `difficulties_within`. As a command,
for any solver that can be run over a file:

    python -m m1.data_recipes.tasks.calibrate problems --family sudoku > problems.jsonl
    (answer them: one {"id": ..., "answer": ...} per line)
    python -m m1.data_recipes.tasks.calibrate judge problems.jsonl answers.jsonl --upper 0.5
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m1.data_recipes.chat import Response
from m1.data_recipes.tasks.families import Task, family_named, make_tasks, verify
from m1.infra.errors import BadInputError, InvalidSettingError, M1Error

Solver = Callable[[Task], str]

LOWER, UPPER = 0.0, 0.5  # M1 section 4.1: easiest parameters with a pass rate in (0, 0.5)
MASKED = "infra_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """How one difficulty went; masked samples count neither way."""

    difficulty: int
    passed: int
    judged: int
    masked: int

    @property
    def rate(self) -> float | None:
        """Share of judged problems that passed; None where none was judged."""
        return self.passed / self.judged if self.judged else None

    def is_within(self, lower: float, upper: float) -> bool:
        """Whether the rate lies strictly between the bounds."""
        return self.rate is not None and lower < self.rate < upper


def calibration_tasks(
    family: str, *, difficulties: Iterable[int], count: int, seed: int
) -> list[Task]:
    """`count` problems of every difficulty, from the split that reinforcement draws from."""
    return [
        task
        for difficulty in difficulties
        for task in make_tasks(
            family, count=count, difficulty=difficulty, seed=seed, split="reinforce"
        )
    ]


def pass_rates(tasks: Sequence[Task], answers: Mapping[str, str]) -> list[PassRate]:
    """One rate per difficulty, easiest first; a problem without an answer did not pass."""
    rates = []
    for difficulty in sorted({task.difficulty for task in tasks}):
        outcomes = [
            _outcome(task, answers.get(task.id, ""))
            for task in tasks
            if task.difficulty == difficulty
        ]
        masked = outcomes.count(MASKED)
        rates.append(
            PassRate(
                difficulty=difficulty,
                passed=outcomes.count("pass"),
                judged=len(outcomes) - masked,
                masked=masked,
            )
        )
    return rates


def difficulties_within(
    family: str, solver: Solver, *, bounds: tuple[float, float], count: int, seed: int
) -> list[int]:
    """Difficulties at which the solver's pass rate lies strictly between the bounds."""
    _check_bounds(*bounds)
    everything = range(1, family_named(family).maximum_difficulty + 1)
    tasks = calibration_tasks(family, difficulties=everything, count=count, seed=seed)
    rates = pass_rates(tasks, {task.id: solver(task) for task in tasks})
    return [rate.difficulty for rate in rates if rate.is_within(*bounds)]


def _outcome(task: Task, answer: str) -> str:
    return verify(task, Response(thought="", answer=answer, well_formed=True)).outcome


def _check_bounds(lower: float, upper: float) -> None:
    if not 0.0 <= lower < upper <= 1.0:
        accepted = "lower and upper with 0 <= lower < upper <= 1"
        raise InvalidSettingError(field="bounds", value=(lower, upper), accepted=accepted)


def _read_lines(path: Path) -> list[dict[str, object]]:
    """Objects of a JSON lines file.

    Raises:
        BadInputError: missing, or a line that is no JSON object with an `id`.
    """
    if not path.is_file():
        raise BadInputError(f"no file at {path}")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadInputError(f"{path.name}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise BadInputError(f"{path.name}, line {number}: no object with a text `id`")
        found.append(row)
    return found


def _tasks_of(path: Path) -> list[Task]:
    try:
        return [Task(**row) for row in _read_lines(path)]  # type: ignore[arg-type]
    except TypeError as error:
        raise BadInputError(f"{path.name} does not hold tasks: {error}") from error


def _write_problems(arguments: argparse.Namespace) -> None:
    tasks = calibration_tasks(
        arguments.family,
        difficulties=range(arguments.easiest, arguments.hardest + 1),
        count=arguments.count,
        seed=arguments.seed,
    )
    for task in tasks:
        sys.stdout.write(json.dumps(dataclasses.asdict(task)) + "\n")


def _judge(arguments: argparse.Namespace) -> None:
    _check_bounds(arguments.lower, arguments.upper)
    answers = {str(row["id"]): str(row.get("answer", "")) for row in _read_lines(arguments.answers)}
    for rate in pass_rates(_tasks_of(arguments.problems), answers):
        row = dataclasses.asdict(rate) | {
            "rate": rate.rate,
            "within": rate.is_within(arguments.lower, arguments.upper),
        }
        sys.stdout.write(json.dumps(row) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="calibrate", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    problems = commands.add_parser("problems", help="problems of every difficulty, as JSON lines")
    problems.add_argument("--family", required=True)
    problems.add_argument("--easiest", type=int, default=1)
    problems.add_argument("--hardest", type=int, default=10)
    problems.add_argument("--count", type=int, default=16, help="problems per difficulty")
    problems.add_argument("--seed", type=int, default=1)
    problems.set_defaults(act=_write_problems)
    judge = commands.add_parser("judge", help="pass rates, and which lie within the bounds")
    judge.add_argument("problems", type=Path)
    judge.add_argument("answers", type=Path)
    judge.add_argument("--lower", type=float, default=LOWER)
    judge.add_argument("--upper", type=float, default=UPPER)
    judge.set_defaults(act=_judge)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or the exit code of the error it reports in one line."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.act(parsed)
    except M1Error as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

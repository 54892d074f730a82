"""Claims about programming tasks: the reference program passes its hidden suite, others fail.

Programs run here are our own reference programs, so a plain process is enough for them.
"""

import json
import random
import subprocess
import sys

import pytest

from m1.data_recipes.tasks.code import (
    MAXIMUM_PROGRAM_CHARACTERS,
    CallCase,
    CodeFamily,
    Suite,
    TextCase,
    code_families,
    program_of,
)
from m1.data_recipes.tasks.families import answer_of
from m1.data_recipes.tasks.task import Outcome, Task


class ProcessRunner:
    """Runs one trusted program over a suite, in one process for all cases."""

    def run(self, source: str, suite: Suite) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _HARNESS],
            input=json.dumps([source, [_as_row(case) for case in suite]]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return "pass" if done.returncode == 0 and json.loads(done.stdout) is True else "fail"


def _as_row(case: TextCase | CallCase) -> list[object]:
    if isinstance(case, TextCase):
        return ["text", case.stdin, case.expected]
    return [case.function, list(case.arguments), case.expected]


_HARNESS = """
import contextlib, io, json, sys
source, rows = json.load(sys.stdin)
code, right = compile(source, "solution", "exec"), True
for kind, given, expected in rows:
    names, out = {}, io.StringIO()
    sys.stdin = io.StringIO(given if kind == "text" else "")
    with contextlib.redirect_stdout(out):
        exec(code, names)
    actual = out.getvalue().strip() if kind == "text" else names[kind](*given)
    right = right and actual == expected
print(json.dumps(right))
"""

FAMILIES = code_families(ProcessRunner())


def _task(family: CodeFamily, difficulty: int, seed: int) -> Task:
    problem = family.make(random.Random(seed), difficulty=difficulty)
    return Task(
        id=str(seed),
        domain="code",
        family=family.name,
        prompt=problem.prompt,
        answer=problem.answer,
        difficulty=difficulty,
        seed=seed,
        puzzle=problem.puzzle,
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_reference_program_passes_and_a_neighbour_s_fails(family: CodeFamily) -> None:
    tasks = [_task(family, difficulty, difficulty) for difficulty in range(1, 11)]
    for place, task in enumerate(tasks):
        thought = family.solution(task, random.Random(0), noise=0.0)
        assert answer_of(thought) == task.answer
        assert family.judge(task, f"So:\n```python\n{task.answer}\n```\n") == "pass"
        assert family.judge(task, tasks[place - 1].answer) == "fail"


def test_difficulty_is_the_number_of_operations() -> None:
    for family in FAMILIES:
        sizes = [family.make(random.Random(1), difficulty=d).size for d in range(1, 11)]

        assert sizes == list(range(1, 11))


def test_expected_results_are_not_in_the_prompt() -> None:
    task = _task(FAMILIES[0], 3, 1)

    assert "10**9" not in task.prompt
    assert "1000000000" not in task.prompt


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("print(1)", "print(1)\n"),
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```\na\n```\nno:\n```py\nb\n```\ndone", "b\n"),
        ("```python\nprint(1)", "```python\nprint(1)\n"),
        ("  \n", None),
        ("x" * (MAXIMUM_PROGRAM_CHARACTERS + 1), None),
    ],
)
def test_the_last_fenced_block_is_the_program(text: str, source: str | None) -> None:
    assert program_of(text) == source


def test_what_cannot_be_a_program_is_never_run() -> None:
    class NoRunner:
        def run(self, source: str, suite: Suite) -> Outcome:
            raise AssertionError(source[:20], len(suite))

    family = code_families(NoRunner())[0]

    assert family.judge(_task(family, 1, 1), "x" * 10_000_000) == "fail"

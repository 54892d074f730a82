"""Programming tasks judged for real: in the sandbox, by suites that the program never sees."""

import random

import pytest

from m1.data_recipes.tasks.code import CodeFamily, code_families
from m1.data_recipes.tasks.families import answer_of
from m1.data_recipes.tasks.sandboxed import SandboxRunner
from m1.data_recipes.tasks.task import Task
from m1.infra.errors import SandboxFailedError
from m1.infra.sandbox.pool import WarmPool


@pytest.fixture(params=[0, 1], ids=["standard-input", "function"])
def family(pool: WarmPool, request: pytest.FixtureRequest) -> CodeFamily:
    return code_families(SandboxRunner(pool))[request.param]


@pytest.fixture
def task(family: CodeFamily) -> Task:
    problem = family.make(random.Random(7), difficulty=3)
    return Task(
        id="a", domain=family.domain, family=family.name, prompt=problem.prompt,
        answer=problem.answer, difficulty=3, seed=7, puzzle=problem.puzzle,
    )  # fmt: skip


def test_the_reference_program_passes_its_hidden_suite(family: CodeFamily, task: Task) -> None:
    program = answer_of(family.solution(task, random.Random(1), noise=0.0))
    assert family.judge(task, program) == "pass"


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("def solve(values):\n    return []\nprint()", "fail"),
        ("raise SystemExit('verdict: pass')", "fail"),
        ("print('pass')\nimport os\nos._exit(0)", "fail"),
        ("while True: pass", "policy_timeout"),
    ],
    ids=["wrong", "raises", "claims-to-pass", "endless"],
)
def test_a_program_earns_nothing_but_by_right_answers(family, task, program, outcome) -> None:
    assert family.judge(task, f"```python\n{program}\n```") == outcome


class Broken:
    """A sandbox that cannot start."""

    def start(self):
        raise SandboxFailedError("no more users")

    def close(self) -> None:
        return


def test_a_sandbox_that_breaks_masks_the_sample(task: Task) -> None:
    for family in code_families(SandboxRunner(Broken())):
        if family.name == task.family:
            assert family.judge(task, "print(1)") == "infra_error"

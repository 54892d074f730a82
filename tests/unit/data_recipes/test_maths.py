"""Claims about maths answers: what counts as equal, and that no text can stall the judge."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.data_recipes.chat import Response
from m1.data_recipes.tasks.families import FAMILIES, Task, make_tasks, verify
from m1.data_recipes.tasks.maths import MATHS_FAMILIES, judge_maths
from m1.data_recipes.tasks.maths import process as maths_process
from m1.data_recipes.tasks.maths.process import ComparerProcess
from m1.data_recipes.tasks.maths.reading import final_answer, quantity
from m1.infra.errors import StageFailedError


@pytest.fixture(scope="module")
def comparer() -> Iterator[ComparerProcess]:
    process = ComparerProcess()
    yield process
    process.close()


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        pytest.param(r"\frac{1}{2}", r"It is \boxed{0.5}.", id="fraction-as-decimal"),
        pytest.param(r"\frac12", "1/2", id="slash"),
        pytest.param("x^2+2x+1", "(x+1)^2", id="expanded"),
        pytest.param("1,2,-3", r"\boxed{-3, 2, 1}", id="set-in-another-order"),
        pytest.param(r"\sqrt{8}", r"2\sqrt{2}", id="root"),
        pytest.param("3", "x=3", id="assignment"),
        pytest.param("1<x<2", "(1,2)", id="interval-for-an-inequality"),
        pytest.param("0.33", "1/3", id="rounds-to-the-gold"),
        pytest.param("0.5", "50\\%", id="percentage"),
        pytest.param("1000", "1,000", id="thousands-separator"),
        pytest.param("2", r"\boxed{3}, no: \boxed{2}", id="last-box"),
        pytest.param(r"\boxed{7}", r"\boxed{7}", id="boxed-gold"),
        pytest.param("5 cm", "5", id="unit-left-out"),
        pytest.param("5", r"5\text{ cm}", id="unit-added"),
        pytest.param("5 cm", r"\boxed{5\,\text{centimeters}}", id="unit-spelled-out"),
        pytest.param(r"90^\circ", "90 degrees", id="degrees"),
    ],
)
def test_answers_of_the_same_meaning_pass(comparer: ComparerProcess, gold: str, text: str) -> None:
    assert judge_maths(gold, text, comparer=comparer) == "pass"


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        pytest.param("0.34", "1/3", id="rounds-to-another"),
        pytest.param("1/3", "0.33", id="exact-gold-is-not-rounded"),
        pytest.param("(1,2)", "1<x<2", id="inequality-for-an-interval"),
        pytest.param("3", r"\boxed{3}, no: \boxed{2}", id="only-the-last-box"),
        pytest.param("5 cm", r"5\,\text{m}", id="another-unit"),
        pytest.param("12", "banana", id="word"),
        pytest.param("12", "", id="nothing"),
        pytest.param("12", r"\boxed{12", id="box-never-closed"),
        pytest.param("12", "12 or 13", id="two-answers"),
    ],
)
def test_answers_of_another_meaning_fail(comparer: ComparerProcess, gold: str, text: str) -> None:
    assert judge_maths(gold, text, comparer=comparer) == "fail"


def test_a_relative_tolerance_is_used_where_the_task_gives_one(comparer: ComparerProcess) -> None:
    def outcome(text: str) -> str:
        return judge_maths("200", text, relative_tolerance=0.01, comparer=comparer)

    assert [outcome(text) for text in ("201.9", "198.1", "202.1")] == ["pass", "pass", "fail"]


HOSTILE = {
    "tower": "9^9^9^9",
    "braced-tower": "9^{9^{9^{9}}}",
    "brackets-3000": "(" * 3000 + "1" + ")" * 3000,
    "brackets-24": "(" * 24 + "1" + ")" * 24,
    "roots": r"\sqrt{" * 20 + "2" + "}" * 20,
    "sum-of-400": "+".join(["x"] * 400),
    "factorials": "100000!!!",
    "binomial": r"\binom{10000000}{5000000}",
    "long-sum": r"\sum_{n=1}^{99999999} n^{n}",
    "integral": r"\int_0^1 \int e^{x^2} \sin(x^{x}) dx",
    "nines": "9" * 999,
    "megabyte": "a" * 1_000_000,
    "ten-megabytes": "a" * 10_000_000,
    "boxes": r"\boxed{" * 100_000,
    "spaces": r"\boxed" + " " * 500_000,
    "units": "1" + " m" * 400,
    "code": "__import__('os').abort()",
    "nul": "5\x00",
    "surrogate": "\ud800",
    "line-breaks": "1\n" * 400,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_answers_end_within_two_seconds(comparer: ComparerProcess, kind: str) -> None:
    assert judge_maths("1", "2", comparer=comparer) == "fail"  # warm
    before = _processor_seconds(comparer)

    outcome = judge_maths("10", HOSTILE[kind], comparer=comparer)

    assert outcome in ("fail", "policy_timeout")
    assert _processor_seconds(comparer) - before < 2.0
    assert judge_maths("1/2", "0.5", comparer=comparer) == "pass"


def _processor_seconds(comparer: ComparerProcess) -> float:
    """Of this process, the worker and its ended children; wall time would measure the machine."""
    worker = psutil.Process(comparer.process_id)
    return sum(worker.cpu_times()[:4]) + time.process_time()


def test_an_answer_that_uses_up_its_time_is_the_policy_s_fault(comparer: ComparerProcess) -> None:
    assert judge_maths("10", HOSTILE["braced-tower"], comparer=comparer) == "policy_timeout"


def test_no_answer_changes_how_the_next_one_is_judged(comparer: ComparerProcess) -> None:
    for text in ("x=7", r"\infty", "1/0", "e=3", r"\pi=3"):
        judge_maths("x", text, comparer=comparer)

    assert judge_maths(r"\pi", "3", comparer=comparer) == "fail"
    assert judge_maths("x", "7", comparer=comparer) == "fail"


def test_a_killed_worker_is_replaced_and_the_answer_judged(comparer: ComparerProcess) -> None:
    assert comparer.compare("1", "1.0") == "pass"
    os.kill(comparer.process_id, signal.SIGKILL)

    assert comparer.compare("1", "1.0") == "pass"


def test_a_fork_has_a_worker_of_its_own_and_leaves_the_other_alone() -> None:
    code = (
        "import os, sys\n"
        "from m1.data_recipes.tasks.maths.process import shared_comparer\n"
        "worker = shared_comparer().process_id\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    is_own = shared_comparer().process_id != worker\n"
        "    sys.exit(0 if is_own and shared_comparer().compare('1', '1.0') == 'pass' else 1)\n"
        "status = os.waitpid(child, 0)[1]\n"
        "same = shared_comparer().process_id == worker\n"
        "print(status, same, shared_comparer().compare('1/2', '0.5'))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )

    assert done.stdout.split() == ["0", "True", "pass"]


def test_a_worker_that_worked_once_and_is_gone_masks_the_sample(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    process = ComparerProcess()
    assert process.compare("1", "1.0") == "pass"
    process.close()
    monkeypatch.setattr(maths_process, "_WORKER", tmp_path / "missing.py")

    assert process.compare("1", "1.0") == "infra_error"


def test_a_worker_that_never_worked_is_an_error_not_a_mask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(maths_process, "_WORKER", tmp_path / "missing.py")

    with pytest.raises(StageFailedError, match="math-verify"):
        ComparerProcess().compare("1", "1.0")


@pytest.mark.parametrize("family", [family.name for family in MATHS_FAMILIES])
def test_written_solutions_pass_and_other_answers_fail(family: str) -> None:
    tasks = make_tasks(family, count=6, difficulty=2, seed=3, split="heldout")
    for task, other in itertools.pairwise(tasks):
        thought = FAMILIES[family].solution(task, random.Random(0), noise=0.0)
        assert thought.endswith(f"= {task.answer}")
        assert _outcome(task, task.answer) == "pass"
        if other.answer != task.answer:
            assert _outcome(task, other.answer) == "fail"


def test_a_given_task_is_judged_by_its_answer_and_tolerance() -> None:
    task = Task(
        id="1",
        domain="maths",
        family="maths",
        prompt="?",
        answer="100",
        difficulty=1,
        seed=0,
        puzzle='{"relative_tolerance": 0.05}',
    )

    assert [_outcome(task, text) for text in (r"\boxed{104}", "106")] == ["pass", "fail"]


def _outcome(task: Task, answer: str) -> str:
    return verify(task, Response(thought="", answer=answer, well_formed=True)).outcome


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_reading_never_raises_and_never_grows(text: str) -> None:
    answer = final_answer(text)

    if answer is not None:
        assert 0 < len(answer) <= len(text)
        assert quantity(answer).value in (answer, quantity(answer).value.strip())


@pytest.mark.parametrize(
    ("answer", "value", "unit"),
    [
        ("12.5 km/h", "12.5", "km/h"),
        (r"12\,\text{m}^2", "12", "m^2"),
        (r"45^\circ", "45", "degree"),
        ("3 apples", "3 apples", None),
        ("2x", "2x", None),
        ("7", "7", None),
    ],
)
def test_units_are_taken_off(answer: str, value: str, unit: str | None) -> None:
    found = quantity(answer)

    assert (found.value, found.unit) == (value, unit)

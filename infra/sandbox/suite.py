"""Test suites for programs: inputs go into the sandbox, expected answers stay here.

The program runs inside and can make its output say anything; what that output is worth is decided
out here, by comparing data. So neither printing a verdict nor taking over the harness earns one.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m1.infra.errors import SandboxFailedError
from m1.infra.sandbox.protocol import Call, Outcome, Program, Sandbox, Script, Session, Verdict

_ATTEMPTS = 2  # ours: a sandbox that broke before it had the program is replaced once
_MOST_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCase:
    """Standard input, and the standard output it must lead to."""

    stdin: str
    expected: str
    tolerance: float = 0.0  # relative and absolute, between numbers; 0 compares text

    def invocation(self) -> Script:
        """What to run."""
        return Script(stdin=self.stdin.encode())

    def is_right(self, outcome: Outcome) -> bool:
        """Whether the output is the expected one."""
        actual = outcome.stdout.decode("utf-8", "replace")
        return is_same_text(self.expected, actual, tolerance=self.tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCase:
    """Arguments of a function, and the JSON value it must return."""

    function: str
    arguments: tuple[Any, ...]
    expected: Any
    tolerance: float = 1e-9  # ours; relative and absolute, where the expected number is a float

    def invocation(self) -> Call:
        """What to run."""
        return Call(function=self.function, arguments=self.arguments)

    def is_right(self, outcome: Outcome) -> bool:
        """Whether the returned value is the expected one."""
        try:
            actual = json.loads(outcome.value_json or "")
        except (ValueError, RecursionError):
            return False
        return is_same_value(self.expected, actual, tolerance=self.tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict on one program, and why."""

    verdict: Verdict
    passed: int
    total: int
    reason: str = ""


def judge(sandbox: Sandbox, program: Program, cases: Sequence[TextCase | CallCase]) -> Judgement:
    """Run a program over its cases, up to the first that it does not pass.

    Raises:
        ValueError: there are no cases; everything would pass.
    """
    if not cases:
        raise ValueError("a suite needs at least one case")
    try:
        session = _open(sandbox, program)
    except SandboxFailedError as error:
        return Judgement(verdict=Verdict.INFRA_ERROR, passed=0, total=len(cases), reason=str(error))
    with session:
        for passed, case in enumerate(cases):
            outcome = session.invoke(case.invocation())
            verdict, reason = _judge_case(case, outcome)
            if verdict is not Verdict.PASS:
                return Judgement(
                    verdict=verdict,
                    passed=passed,
                    total=len(cases),
                    reason=f"case {passed}: {reason}",
                )
    return Judgement(verdict=Verdict.PASS, passed=len(cases), total=len(cases))


def _open(sandbox: Sandbox, program: Program) -> Session:
    for attempt in range(_ATTEMPTS):
        session = sandbox.start()
        try:
            session.load(program)
        except SandboxFailedError:
            session.close()
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return session
    raise AssertionError


def _judge_case(case: TextCase | CallCase, outcome: Outcome) -> tuple[Verdict, str]:
    if outcome.is_out_of_time:
        return Verdict.POLICY_TIMEOUT, f"out of {outcome.ending}"
    if outcome.exit_code != 0:
        said = outcome.stderr.decode("utf-8", "replace")[-_MOST_SHOWN:]
        return Verdict.FAIL, f"{outcome.ending}, exit code {outcome.exit_code}: {said}"
    if outcome.ending != "exited":
        return Verdict.FAIL, f"over the limit of {outcome.ending}"
    if not case.is_right(outcome):
        return Verdict.FAIL, "wrong answer"
    return Verdict.PASS, ""


def is_same_text(expected: str, actual: str, *, tolerance: float = 0.0) -> bool:
    """Equal but for white space at the ends of lines and empty lines at the end.

    With a tolerance, words that are numbers on both sides may differ by that much.
    """
    wanted, got = _lines(expected), _lines(actual)
    if wanted == got:
        return True
    if not tolerance or len(wanted) != len(got):
        return False
    return all(
        len(left.split()) == len(right.split())
        and all(map(lambda a, b: _is_near(a, b, tolerance), left.split(), right.split()))
        for left, right in zip(wanted, got, strict=True)
    )


def is_same_value(expected: Any, actual: Any, *, tolerance: float) -> bool:
    """Equal JSON values; floats within the tolerance, true and false are not numbers."""
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, float) and isinstance(actual, int | float):
        return _is_close(expected, actual, tolerance)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            is_same_value(value, actual[name], tolerance=tolerance)
            for name, value in expected.items()
        )
    if isinstance(expected, list | tuple) and isinstance(actual, list):
        return len(expected) == len(actual) and all(
            is_same_value(left, right, tolerance=tolerance)
            for left, right in zip(expected, actual, strict=True)
        )
    return bool(expected == actual)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _is_near(expected: str, actual: str, tolerance: float) -> bool:
    if expected == actual:
        return True
    try:
        return _is_close(float(expected), float(actual), tolerance)
    except ValueError:
        return False


def _is_close(expected: float, actual: float, tolerance: float) -> bool:
    try:
        return math.isclose(expected, actual, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an integer that no float can hold
        return False

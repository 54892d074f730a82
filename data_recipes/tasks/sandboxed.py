"""Judges model-written programs in a sandbox: what turns the code families on.

    with open_sandbox(SandboxLimits()) as sandbox:
        families = code_families(SandboxRunner(sandbox))

A machine without isolation has no sandbox, hence no code families: `open_sandbox` says why.
"""

from m1.data_recipes.tasks import code
from m1.data_recipes.tasks.task import Outcome
from m1.infra.sandbox import suite as sandboxed
from m1.infra.sandbox.protocol import Program, Sandbox, Verdict

_OUTCOMES: dict[Verdict, Outcome] = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "fail",
    Verdict.POLICY_TIMEOUT: "policy_timeout",
    Verdict.INFRA_ERROR: "infra_error",
}


class SandboxRunner:
    """A `SuiteRunner`: every program in a session of its own, expected answers stay outside."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def run(self, source: str, suite: code.Suite) -> Outcome:
        """`pass` when every case passes; a sandbox that broke is `infra_error`, never a fail."""
        cases = [_case(case) for case in suite]
        return _OUTCOMES[sandboxed.judge(self._sandbox, Program(source=source), cases).verdict]


def _case(case: code.TextCase | code.CallCase) -> sandboxed.TextCase | sandboxed.CallCase:
    if isinstance(case, code.TextCase):
        return sandboxed.TextCase(stdin=case.stdin, expected=case.expected)
    return sandboxed.CallCase(
        function=case.function, arguments=case.arguments, expected=case.expected
    )

"""No program can earn a verdict, dodge one, or keep anything for the next invocation."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from m1.infra.errors import SandboxFailedError
from m1.infra.sandbox.pool import WarmPool
from m1.infra.sandbox.protocol import Call, Command, Ending, Program, Script, Verdict
from m1.infra.sandbox.suite import CallCase, TextCase, judge
from tests.security.conftest import LIMITS, Host, wait_for

ADD = [TextCase(stdin="1 2\n", expected="3\n"), TextCase(stdin="20 22\n", expected="42\n")]
ADD_CALLS = [
    CallCase(function="add", arguments=(1, 2), expected=3),
    CallCase(function="add", arguments=(20, 22), expected=42),
]


def _judge(pool: WarmPool, source: str, cases=ADD):
    return judge(pool, Program(source=textwrap.dedent(source)), cases)


def test_a_right_program_passes_in_both_styles(pool: WarmPool) -> None:
    script = _judge(pool, "print(sum(map(int, input().split())))")
    function = _judge(pool, "def add(a, b): return a + b", ADD_CALLS)
    method = [replace(case, function="Solution.add") for case in ADD_CALLS]
    in_a_class = _judge(pool, "class Solution:\n def add(self, a, b): return a + b", method)

    assert [j.verdict for j in (script, function, in_a_class)] == [Verdict.PASS] * 3
    assert script.passed == script.total == 2


def test_a_wrong_program_fails_at_the_first_wrong_case(pool: WarmPool) -> None:
    judgement = _judge(pool, "input(); print(3)")

    assert (judgement.verdict, judgement.passed) == (Verdict.FAIL, 1)
    assert "case 1" in judgement.reason


@pytest.mark.parametrize(
    "source",
    [
        pytest.param('print("pass")', id="prints-a-verdict"),
        pytest.param('print(\'{"verdict": "pass", "ending": "exited"}\')', id="prints-a-message"),
        pytest.param(
            """
            import os, struct
            body = b'{"ending": "exited", "exit_code": 0, "stdout": "3", "stderr": "", '
            body += b'"value": null, "cpu_seconds": 0}'
            for number in range(3, 256):
                try:
                    os.write(number, struct.pack(">I", len(body)) + body)
                except OSError:
                    pass
            """,
            id="writes-to-every-descriptor",
        ),
        pytest.param("import os; os._exit(0)", id="exits-well-without-an-answer"),
        pytest.param("print(3); raise SystemExit(1)", id="right-output-and-a-failure"),
        pytest.param("import sys; sys.exit('infra_error')", id="names-an-infra-error"),
        pytest.param("import os; os.abort()", id="crashes"),
        pytest.param("import os; os.kill(os.getppid(), 9)", id="kills-the-harness"),
        pytest.param("import os; os.kill(-1, 9)", id="kills-everything"),
        pytest.param("print('x' * 10**7)", id="says-too-much"),
        pytest.param("def broken(:", id="is-not-python"),
        pytest.param("held = [bytearray(1 << 20) for _ in range(4000)]", id="eats-memory"),
    ],
)
def test_a_verdict_is_neither_forged_nor_dodged(pool: WarmPool, source: str) -> None:
    judgement = _judge(pool, source)

    assert judgement.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            """
            class Everything(int):
                def __eq__(self, other): return True
                def __hash__(self): return 0
            def add(a, b): return Everything(0)
            """,
            id="equal-to-everything",
        ),
        pytest.param("def add(a, b): return '3'", id="text-for-a-number"),
        pytest.param("def add(a, b): return float('nan')", id="not-a-number"),
        pytest.param("def add(a, b): return [[3]]", id="a-list-for-a-number"),
        pytest.param("def add(a, b): return {1, 2}", id="no-json"),
        pytest.param("def add(a, b):\n x = []\n x.append(x)\n return x", id="endless-value"),
        pytest.param(
            "import json\njson.dumps = lambda value: 'null'\ndef add(a, b): return 3",
            id="changes-the-encoder",
        ),
        pytest.param(
            "def add(a, b):\n x = 3\n for _ in range(900): x = [x]\n return x", id="deep-value"
        ),
        pytest.param("def add(a, b): return 10 ** 4000", id="huge-value"),
        pytest.param("def sub(a, b): return a - b", id="no-such-function"),
    ],
)
def test_a_returned_value_is_compared_as_data(pool: WarmPool, source: str) -> None:
    judgement = _judge(pool, source, ADD_CALLS)

    assert judgement.verdict is Verdict.FAIL


@pytest.fixture(scope="module")
def hurried(pools: dict[bool, WarmPool]) -> Iterator[WarmPool]:
    """A pool whose programs have little time."""
    return pools[False]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("while True: pass", id="busy"),
        pytest.param("import time; time.sleep(3600)", id="idle"),
        pytest.param("input(); print(3)\nimport time\ntime.sleep(3600)", id="right-and-late"),
    ],
)
def test_running_out_of_time_is_its_own_verdict(hurried: WarmPool, source: str) -> None:
    judgement = _judge(hurried, source)

    assert judgement.verdict is Verdict.POLICY_TIMEOUT


def test_a_sandbox_that_does_not_start_masks_the_sample(pool: WarmPool) -> None:
    class Broken:
        limits = LIMITS

        def start(self):
            raise SandboxFailedError("no more processes")

        def close(self) -> None:
            raise AssertionError

    judgement = judge(Broken(), Program(source="print(3)"), ADD)

    assert judgement.verdict is Verdict.INFRA_ERROR
    assert "no more processes" in judgement.reason


def test_one_invocation_leaves_the_next_nothing(pool: WarmPool) -> None:
    source = """
        import os, sys
        print(sorted(os.listdir(".")), hasattr(sys, "left"))
        sys.left = True
        os.makedirs("folder/inner"); os.symlink("/", "folder/link"); os.chmod("solution.py", 0)
        open("solution.py.new", "w").write("print('replaced')")
        os.replace("solution.py.new", "solution.py")
        if os.fork() == 0:
            while True:
                pass
        """
    with pool.start() as session:
        session.load(Program(source=textwrap.dedent(source), files={"data/one.txt": b"1"}))

        said = [session.invoke(Script()).stdout for _ in range(3)]

    assert said == [b"['data', 'solution.py'] False\n"] * 3


def test_a_session_goes_on_after_an_invocation_that_ran_out_of_time(hurried: WarmPool) -> None:
    source = "def wait(seconds):\n import time\n time.sleep(seconds)\n return 'awake'"
    with hurried.start() as session:
        session.load(Program(source=source))

        endings = [
            session.invoke(Call(function="wait", arguments=(seconds,))).ending
            for seconds in (3600, 0)
        ]

    assert endings == [Ending.WALL_TIME, Ending.EXITED]


def test_a_command_sees_the_files_and_its_input(pool: WarmPool) -> None:
    files = {"repository/answer.txt": b"forty-two\n"}
    with pool.start() as session:
        session.load(Program(files=files))

        outcome = session.invoke(
            Command(argv=("cat", "repository/answer.txt", "-"), stdin=b"\xff\x00 raw")
        )

    assert (outcome.exit_code, outcome.stdout) == (0, b"forty-two\n\xff\x00 raw")


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"../../usr/lib/new": b""}, id="above"),
        pytest.param({"/etc/new": b""}, id="absolute"),
        pytest.param({"big": bytes(LIMITS.file_bytes + 1)}, id="too-large"),
        pytest.param({"nul\0": b""}, id="not-a-name"),
        pytest.param({"solution.py/inner": b""}, id="below-a-file"),
    ],
)
def test_files_that_cannot_be_laid_out_are_the_programs_fault(pool: WarmPool, files) -> None:
    program = Program(source="print(sum(map(int, input().split())))", files=files)

    judgement = judge(pool, program, ADD)

    assert judgement.verdict is Verdict.FAIL


def test_a_preloaded_module_is_imported_before_the_program_comes(kind) -> None:
    look = Program(source="import sys\nprint('fractions' in sys.modules)")
    call = Call(function="gcd", arguments=(12, 18), module="math")
    limits = replace(LIMITS, wall_seconds=20.0)

    said = []
    for preload in ((), ("fractions",)):
        with kind(limits, preload=preload).start() as session:
            session.load(look)
            said.append(session.invoke(Script()).stdout)
            value = session.invoke(call).value_json

    assert said == [b"False\n", b"True\n"]
    assert value == "6"


def test_nothing_outlives_the_process_that_started_it(kind, host: Host) -> None:
    source = f"""
        import os, signal, sys, threading
        from m1.infra.sandbox.{kind.__module__.rpartition(".")[2]} import {kind.__name__}
        from m1.infra.sandbox.protocol import Program, SandboxLimits, Script
        session = {kind.__name__}(SandboxLimits(wall_seconds=60)).start()
        session.load(Program(source="import os, time\\nif os.fork() == 0: os.setsid()\\n"
                                    "while True: time.sleep(0.01)"))
        threading.Thread(target=session.invoke, args=(Script(),), daemon=True).start()
        sys.stdin.read(1)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PATH": os.environ["PATH"],
            "TMPDIR": str(host.secret.parent),  # where every user may pass
        },
        stdin=subprocess.PIPE,
    )
    assert launcher.stdin is not None

    def below() -> list[psutil.Process]:
        return psutil.Process(launcher.pid).children(recursive=True)

    assert wait_for(lambda: len([p for p in below() if p.status() == "sleeping"]) >= 3, 30.0)
    started = below()
    launcher.stdin.write(b"x")
    launcher.stdin.close()

    assert launcher.wait() == -signal.SIGKILL
    assert wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in started))

"""What the sandbox promises before anything runs: filter, limits, groups, comparing, refusal."""

import ctypes
import errno
import os
import re
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.infra.errors import (
    InvalidSettingError,
    SandboxFailedError,
    SandboxUnavailableError,
    UsageError,
)
from m1.infra.sandbox import bubblewrap, landlock_sandbox, open_sandbox
from m1.infra.sandbox.cgroup import find_parents, make_group
from m1.infra.sandbox.pool import WarmPool
from m1.infra.sandbox.protocol import Ending, Program, SandboxLimits, Script
from m1.infra.sandbox.seccomp import MACHINES, refused_numbers, seccomp_filter
from m1.infra.sandbox.session import ChannelSession
from m1.infra.sandbox.suite import is_same_text, is_same_value, judge

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def _answer(program: bytes, *, machine: str, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would answer: a plain interpreter of the few instructions that are used."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    call = struct.pack("=iIQ6Q", number, MACHINES[machine].audit_code, 0, *padded)
    accumulator = counter = 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("=HBBI", program, 8 * counter)
        counter += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = int.from_bytes(call[operand : operand + 4], "little")
            continue
        holds = {
            0x15: accumulator == operand,
            0x35: accumulator >= operand,
            0x45: accumulator & operand != 0,
        }[code]
        counter += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_refused_numbers_are_those_of_the_kernel_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers here")
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)")
    known = {name: int(number) for name, number in pattern.findall(HEADERS[machine].read_text())}

    ours = refused_numbers(machine, network=False, metadata=False)
    this = MACHINES[machine]
    for name in ("clone", "clone3", "ioctl", "socket"):
        ours[name] = getattr(this, name)

    in_headers = {name: number for name, number in ours.items() if name in known}
    assert in_headers == {name: known[name] for name in in_headers}
    assert len(in_headers) > 60  # older headers lack the newest few


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("network", [True, False])
def test_the_filter_answers_as_the_table_says(machine: str, network: bool) -> None:
    program = seccomp_filter(network=network, metadata=False, machine=machine)
    refused = set(refused_numbers(machine, network=network, metadata=False).values())
    by_argument = {getattr(MACHINES[machine], name) for name in ("clone", "ioctl", "socket")}

    for number in range(467):
        answer = _answer(program, machine=machine, number=number)
        if number == MACHINES[machine].clone3:
            assert answer == ERRNO | errno.ENOSYS
        elif number in refused:
            assert answer == ERRNO | errno.EPERM
        elif number not in by_argument:
            assert answer == ALLOW


@settings(deadline=None)  # a busy machine is no bug
@given(
    flags=st.integers(0, 2**32 - 1),
    family=st.integers(0, 60),
    request=st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0x5412, 0x541C])),
    later=st.integers(467, 2**30 - 1),
)
def test_the_filter_reads_arguments(flags: int, family: int, request: int, later: int) -> None:
    this = MACHINES["x86_64"]
    inside, alone = (
        seccomp_filter(network=True, machine="x86_64"),
        seccomp_filter(network=False, machine="x86_64"),
    )

    def answer(program: bytes, number: int, *arguments: int) -> int:
        return _answer(program, machine="x86_64", number=number, arguments=arguments)

    makes_a_namespace = bool(flags & 0x7E020000)
    assert (answer(inside, this.clone, flags) != ALLOW) == makes_a_namespace
    assert (answer(inside, this.ioctl, 0, request) != ALLOW) == (request in (0x5412, 0x541C))
    may_exist = family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
    assert (answer(inside, this.socket, family) == ALLOW) == may_exist
    assert answer(alone, this.socket, family) == ERRNO | errno.EACCES
    assert answer(inside, later) == ERRNO | errno.ENOSYS
    assert answer(inside, later | 0x40000000) == KILL


def test_another_machines_calls_are_killed_and_an_unknown_machine_refused() -> None:
    program = seccomp_filter(network=True, machine="x86_64")

    assert _answer(program, machine="aarch64", number=0) == KILL
    with pytest.raises(SandboxUnavailableError, match=r"'riscv64'.*x86_64, aarch64"):
        seccomp_filter(network=True, machine="riscv64")


@pytest.mark.parametrize("name", SandboxLimits().as_mapping())
def test_a_limit_must_be_positive(name: str) -> None:
    with pytest.raises(InvalidSettingError, match=f"{name} = 0 .*above 0"):
        SandboxLimits(**{name: 0})


def test_a_version_2_group_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    own = "0::/system.slice/m1.service\n"
    slice_folder = tmp_path / "system.slice"
    slice_folder.mkdir()
    (slice_folder / "cgroup.subtree_control").write_text("")
    group = make_group(dict.fromkeys(("memory", "pids", "cpuacct"), slice_folder), SandboxLimits())
    (folder,) = (path for path in slice_folder.iterdir() if path.is_dir())
    (folder / "cpu.stat").write_text("usage_usec 1000000\nuser_usec 900000\n")
    (folder / "memory.events").write_text("low 0\noom_kill 0\n")

    group.begin()
    nothing = group.breach()
    (folder / "cpu.stat").write_text("usage_usec 99000000\nuser_usec 900000\n")
    busy = group.breach()
    (folder / "memory.events").write_text("low 0\noom_kill 1\n")
    full = group.breach()
    group.add(42)

    assert find_parents(tmp_path, own) is None  # a plain folder is no control group
    assert [nothing, busy, full] == [None, Ending.CPU_TIME, Ending.MEMORY]
    assert (folder / "cgroup.procs").read_text() == "42"


def test_without_isolation_code_is_refused_and_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda _: None)
    monkeypatch.setattr(landlock_sandbox, "landlock_abi", lambda: 0)

    with pytest.raises(SandboxUnavailableError) as caught:
        open_sandbox.open_sandbox(SandboxLimits())

    assert isinstance(caught.value, UsageError)
    assert "not run on this machine" in str(caught.value)
    assert "bubblewrap (`bwrap`) is not installed" in str(caught.value)
    assert "Landlock is not in this kernel" in str(caught.value)


def test_an_old_landlock_is_refused_where_signals_would_get_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(landlock_sandbox, "landlock_abi", lambda: 5)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(SandboxUnavailableError, match=r"ABI 5 .*Linux 6\.12"):
        landlock_sandbox.LandlockSandbox(SandboxLimits())


class _Quiet:
    def begin(self) -> None:
        """Nothing to count."""

    def breach(self) -> None:
        """Nothing is ever wrong."""


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="hangs-up"),
        pytest.param(b"\x00\x00\x00\x05hello", id="no-json"),
        pytest.param(b"\x00\x00\x00\x02[]", id="no-mapping"),
        pytest.param(b"\x00\x00\x00\x02{}", id="empty"),
        pytest.param(b"\xff\xff\xff\xff" + b" " * 100, id="endless"),
        pytest.param((4000).to_bytes(4, "big") + b"[" * 4000, id="deep"),
        pytest.param(b"\x00\x00\x00\x13" + b'{"ending": "pass"} ', id="forged-ending"),
    ],
)
def test_whatever_a_harness_says_is_an_ending_of_the_program(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    killed: list[bool] = []
    session = ChannelSession(
        ours, SandboxLimits(wall_seconds=5), watch=_Quiet(), kill=lambda: killed.append(True)
    )
    theirs.sendall(said)
    theirs.shutdown(socket.SHUT_WR)

    endings = [session.invoke(Script()).ending for _ in range(2)]
    session.close()
    theirs.close()

    assert endings == [Ending.BROKEN, Ending.BROKEN]
    assert killed == [True]


def test_a_silent_harness_runs_out_of_wall_time() -> None:
    ours, theirs = socket.socketpair()
    session = ChannelSession(
        ours, SandboxLimits(wall_seconds=0.05), watch=_Quiet(), kill=lambda: None
    )

    outcome = session.invoke(Script())
    theirs.close()

    assert outcome.ending is Ending.WALL_TIME
    assert outcome.wall_seconds < 5


def test_a_pool_lends_one_session_per_place_and_closes_the_rest() -> None:
    events: list[str] = []

    class Recorded:
        limits = SandboxLimits()

        def start(self) -> ChannelSession:
            ours, theirs = socket.socketpair()
            theirs.close()
            return ChannelSession(
                ours, self.limits, watch=_Quiet(), kill=lambda: events.append("killed")
            )

        def close(self) -> None:
            events.append("closed")

    with WarmPool(Recorded(), ready=2, at_once=1) as pool:
        first = pool.start()
        first.close()
        first.close()
        second = pool.start()
        with pytest.raises(SandboxFailedError):
            second.load(Program(source="print(1)"))
        second.close()
        pool.wait_until_warm()

    assert events == ["killed"] * 4 + ["closed"]
    with pytest.raises(SandboxFailedError, match="closed"):
        pool.start()


def test_a_suite_without_cases_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one case"):
        judge(None, Program(), [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "actual", "tolerance", "same"),
    [
        pytest.param("1 2\n", "1 2", 0.0, True, id="no-last-newline"),
        pytest.param("1\n2\n", "1  \n2\t\n\n", 0.0, True, id="trailing-space"),
        pytest.param("1 2", "1  2", 0.0, False, id="inner-space"),
        pytest.param("1\n2", "1", 0.0, False, id="too-short"),
        pytest.param("1\n", "1\n2", 0.0, False, id="too-long"),
        pytest.param("0.3333", "0.33333", 1e-3, True, id="near"),
        pytest.param("0.3333", "0.35", 1e-3, False, id="not-near"),
        pytest.param("a 1.0", "b 1.0", 1e-3, False, id="another-word"),
        pytest.param("1.0", "nan", 1e-3, False, id="not-a-number"),
        pytest.param("", "", 0.0, True, id="nothing"),
    ],
)
def test_text_is_compared_line_by_line(
    expected: str, actual: str, tolerance: float, same: bool
) -> None:
    assert is_same_text(expected, actual, tolerance=tolerance) is same


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(left=JSON_VALUES, right=JSON_VALUES)
def test_values_without_floats_are_compared_exactly(left: object, right: object) -> None:
    import json

    reference = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)

    assert is_same_value(left, left, tolerance=0.0)
    assert is_same_value(left, right, tolerance=0.0) is reference


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        pytest.param(0.1 + 0.2, 0.3, True, id="rounding"),
        pytest.param(1.0, 1, True, id="whole-number"),
        pytest.param(1, True, False, id="true-is-no-number"),
        pytest.param(1.0, 10**400, False, id="no-float-can-hold-it"),
        pytest.param([1.0, (2.0,)], [1.0, [2.0]], True, id="tuples-are-lists"),
        pytest.param(float("nan"), float("nan"), False, id="not-a-number"),
        pytest.param({"a": 1.0}, {"a": 1.1}, False, id="inside"),
    ],
)
def test_floats_are_compared_within_a_tolerance(expected, actual, same: bool) -> None:
    assert is_same_value(expected, actual, tolerance=1e-9) is same


def test_the_capability_structures_are_as_long_as_the_kernels() -> None:
    from m1.infra.sandbox import landlock

    assert ctypes.sizeof(landlock._RulesetAttributes) == 24
    assert ctypes.sizeof(landlock._PathBeneath) == 12

"""Both sandboxes, warm, and a host with something to lose. Holds no tests."""

import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from m1.infra.errors import SandboxUnavailableError
from m1.infra.sandbox.bubblewrap import BubblewrapSandbox
from m1.infra.sandbox.landlock_sandbox import LandlockSandbox
from m1.infra.sandbox.pool import WarmPool
from m1.infra.sandbox.private_user import private_users
from m1.infra.sandbox.protocol import MEBIBYTE, SandboxLimits
from tests.conftest import REQUIRE_REAL

LIMITS = SandboxLimits(
    wall_seconds=2.5,
    cpu_seconds=2.0,
    memory_bytes=160 * MEBIBYTE,
    output_bytes=65536,
    processes=24,
    file_bytes=8 * MEBIBYTE,
    open_files=64,
)
KINDS = {"bubblewrap": BubblewrapSandbox, "landlock": LandlockSandbox}
PATIENT = replace(LIMITS, wall_seconds=20.0)  # for what must end by itself, on a busy machine too
CANARY = "canary-in-the-environment"


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[BubblewrapSandbox | LandlockSandbox]:
    """Each way of isolating, if this machine has it."""
    if platform.system() != "Linux":
        pytest.skip("sandboxes need Linux")
    try:
        KINDS[request.param](LIMITS)
    except SandboxUnavailableError as error:
        if os.environ.get(REQUIRE_REAL) == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return KINDS[request.param]


@pytest.fixture(scope="session")
def pools(kind: type[BubblewrapSandbox | LandlockSandbox]) -> Iterator[dict[bool, WarmPool]]:
    """One warm session each for what ends by itself (True) and for what has to be ended (False)."""
    os.environ["SECRET_CANARY"] = CANARY
    with (
        WarmPool(kind(PATIENT), ready=1, at_once=1) as patient,
        WarmPool(kind(LIMITS), ready=1, at_once=1) as hurried,
    ):
        for pool in (patient, hurried):
            pool.wait_until_warm()
        yield {True: patient, False: hurried}
    del os.environ["SECRET_CANARY"]
    assert wait_for(lambda: not inside_processes())


@pytest.fixture(scope="session")
def pool(pools: dict[bool, WarmPool]) -> WarmPool:
    """One warm session with time enough."""
    return pools[True]


@dataclass
class Host:
    """What the attacks are after."""

    secret: Path
    outside: Path
    victim: subprocess.Popen[bytes]
    listeners: list[socket.socket]

    @property
    def port(self) -> int:
        """Where the host listens on its loopback."""
        return int(self.listeners[0].getsockname()[1])

    def aim(self, source: str) -> str:
        """A program with its targets filled in."""
        targets = {
            "@SECRET@": str(self.secret),
            "@OUTSIDE@": str(self.outside),
            "@VICTIM@": str(self.victim.pid),
            "@PORT@": str(self.port),
            "@SOCKET@": self.listeners[1].getsockname(),
        }
        for name, value in targets.items():
            source = source.replace(name, value)
        return source

    def assert_unharmed(self) -> None:
        """Nothing was changed, killed or reached."""
        assert self.secret.read_text() == "canary of a file"
        assert self.secret.stat().st_mode & 0o777 == 0o644
        assert list(self.outside.iterdir()) == []
        assert self.victim.poll() is None
        assert psutil.Process(self.victim.pid).status() != psutil.STATUS_STOPPED
        for listener in self.listeners:
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A file, a folder, a process and three sockets, as open as they can be."""
    secret, outside = tmp_path / "secret", tmp_path / "outside"
    secret.write_text("canary of a file")
    secret.chmod(0o644)
    outside.mkdir()
    outside.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)  # only the sandbox stands in the way
    tmp_path.chmod(0o755)
    victim = subprocess.Popen(["sleep", "600"], env={"SECRET": CANARY})
    listeners = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    listeners[0].bind(("127.0.0.1", 0))
    listeners[1].bind(str(tmp_path / "socket"))
    (tmp_path / "socket").chmod(0o777)
    listeners[2].bind(f"\0m1-test-{listeners[0].getsockname()[1]}")
    for listener in listeners:
        listener.listen()
        listener.setblocking(False)
    yield Host(secret=secret, outside=outside, victim=victim, listeners=listeners)
    victim.kill()
    victim.wait()
    for listener in listeners:
        listener.close()


def inside_processes() -> list[psutil.Process]:
    """Every process that belongs to a sandbox of this test process; orphans are found by user."""
    own = {
        process.pid: process
        for process in psutil.Process().children(recursive=True)
        if any("inside.harness" in word for word in _words(process))
    }
    orphans = {process.pid: process for process in psutil.process_iter() if _is_orphan(process)}
    return list({**own, **orphans}.values())


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _is_orphan(process: psutil.Process) -> bool:
    try:
        user = process.uids().real
    except psutil.NoSuchProcess:
        return False
    return os.geteuid() == 0 and user in private_users()


def wait_for(claim, seconds: float = 5.0) -> bool:
    """Whether a claim becomes true in time."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True

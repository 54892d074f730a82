"""Sandbox where namespaces are missing: Landlock, seccomp, resource limits, a watch from outside.

What it does not do: hide that a file exists, give a network of its own (there are no sockets but
pairs), count the buffers of pipes and socket pairs, or bound memory and scratch bytes between two
looks of the watch. Needs Linux 6.12, or root and Linux 6.2: without either, nothing would confine
a signal to the sandbox.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from m1.infra.errors import SandboxFailedError, SandboxUnavailableError
from m1.infra.sandbox.interpreter import own_interpreter, public_interpreter
from m1.infra.sandbox.landlock import SCOPED_SIGNALS_ABI, landlock_abi, open_ruleset
from m1.infra.sandbox.launch import (
    HarnessConfig,
    HarnessProcess,
    Packages,
    resource_limits,
    seal_filter,
)
from m1.infra.sandbox.private_user import lend_user, take_back
from m1.infra.sandbox.protocol import SandboxLimits
from m1.infra.sandbox.session import ChannelSession
from m1.infra.sandbox.tree_watch import TreeWatch, kill_all, processes_below, processes_of

_DEVICES = tuple(Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom"))
_LOADER_CACHE = Path("/etc/ld.so.cache")
_END_SECONDS = 2.0


class LandlockSandbox:
    """Starts one confined Python per session.

    Args:
        limits: what each session may use.
        import_paths: folders of importable packages, readable inside.
        preload: modules imported before a session is handed out.

    Raises:
        SandboxUnavailableError: the kernel's Landlock is missing or too old, or as root no Python
            is readable for other users.
    """

    def __init__(
        self,
        limits: SandboxLimits,
        *,
        import_paths: Sequence[Path] = (),
        preload: Sequence[str] = (),
    ) -> None:
        self.limits = limits
        self._packages = Packages.of(import_paths, preload)
        self._is_root = os.geteuid() == 0
        self._abi = landlock_abi()
        if self._abi == 0:
            raise SandboxUnavailableError("Landlock is not in this kernel")
        if self._abi < SCOPED_SIGNALS_ABI and not self._is_root:
            raise SandboxUnavailableError(
                f"Landlock ABI {self._abi} cannot confine signals; at least ABI "
                f"{SCOPED_SIGNALS_ABI} (Linux 6.12), or root"
            )
        self._interpreter = public_interpreter() if self._is_root else own_interpreter()
        try:
            self.start().close()
        except SandboxFailedError as error:
            raise SandboxUnavailableError(f"Landlock does not work here: {error}") from error

    def start(self) -> ChannelSession:
        """A session without a program."""
        user = lend_user() if self._is_root else None
        scratch = Path(tempfile.mkdtemp(prefix="m1-sandbox-"))
        if user is not None:
            os.chown(scratch, user, user)
        ruleset = self._ruleset(scratch)
        outside, inside = socket.socketpair()
        filter_file = seal_filter(network=False, metadata=self._is_root)
        config = self._config(user, scratch, (inside.fileno(), filter_file, ruleset))
        try:
            harness = HarnessProcess(
                self._interpreter.command(config.text()), (inside.fileno(), filter_file, ruleset)
            )
        finally:
            inside.close()
            os.close(filter_file)
            os.close(ruleset)
        place = _Place(harness.process, user, scratch)
        watch = TreeWatch(harness.process.pid, self.limits, scratch=scratch)
        session = ChannelSession(outside, self.limits, watch=watch, kill=place.kill)
        try:
            session.wait_until_ready()
        except SandboxFailedError as error:
            raise harness.failed(session, error) from error
        harness.is_started()
        return session

    def close(self) -> None:
        """Nothing is prepared ahead."""

    def _ruleset(self, scratch: Path) -> int:
        folders = self._interpreter.folders(self._packages.import_paths)
        return open_ruleset(
            self._abi,
            readable=[*folders, *_existing(_LOADER_CACHE)],
            writable=[scratch],
            devices=_existing(*_DEVICES),
        )

    def _config(
        self, user: int | None, scratch: Path, descriptors: tuple[int, int, int]
    ) -> HarnessConfig:
        channel, filter_file, ruleset = descriptors
        others = 0 if self._is_root else _tasks_of(os.geteuid())
        return HarnessConfig(
            channel=channel,
            seccomp=filter_file,
            landlock=ruleset,
            is_scoped=self._abi >= SCOPED_SIGNALS_ABI,
            work=os.fspath(scratch),
            user=user,
            output_bytes=self.limits.output_bytes,
            rlimits=resource_limits(self.limits, has_group=False, others=others),
            import_paths=tuple(map(os.fspath, self._packages.import_paths)),
            preload=self._packages.preload,
        )


class _Place:
    """The processes and the scratch folder of one session, seen from outside."""

    def __init__(self, process: subprocess.Popen[bytes], user: int | None, scratch: Path) -> None:
        self._process = process
        self._scratch = scratch
        self._user = user

    def kill(self) -> None:
        """The channel is closed: the harness kills all in its domain and ends; then the rest.

        It cannot be signalled from within, and orphans are its children, so it is the one process
        that can end a fork bomb without a race.
        """
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            kill_all(processes_below(self._process.pid))
            self._process.kill()
            self._process.wait()
        while self._user is not None and (left := processes_of(self._user)):
            kill_all(left)
        take_back(self._user)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _existing(*paths: Path) -> list[Path]:
    return [path for path in paths if path.exists()]


def _tasks_of(user: int) -> int:
    """Processes and threads that run as `user` now; the kernel counts them all together."""
    tasks = 0
    for process in psutil.process_iter():
        try:
            tasks += process.num_threads() if process.uids().real == user else 0
        except psutil.NoSuchProcess:
            continue
    return tasks

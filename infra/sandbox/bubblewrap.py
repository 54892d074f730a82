"""Sandbox by bubblewrap: namespaces, seccomp, a control group, an empty launch environment.

Inside there is a read-only system, one small writable folder in memory, a network without a way
out, and no process but its own. As root no user namespace is needed and each session runs as a
user id of its own; otherwise bubblewrap makes a user namespace.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from m1.infra.errors import SandboxFailedError, SandboxUnavailableError
from m1.infra.sandbox.cgroup import ControlGroup, find_parents, make_group
from m1.infra.sandbox.interpreter import own_interpreter
from m1.infra.sandbox.launch import (
    HarnessConfig,
    HarnessProcess,
    Packages,
    resource_limits,
    seal_filter,
)
from m1.infra.sandbox.private_user import lend_user, take_back
from m1.infra.sandbox.protocol import Ending, SandboxLimits
from m1.infra.sandbox.session import ChannelSession, Watch
from m1.infra.sandbox.tree_watch import TreeWatch

WORK = "/sandbox"
_TEMPORARY = "/tmp"  # noqa: S108 - of the inside
_DEVICES = ("null", "zero", "full", "random", "urandom")
_NAMESPACES = ("ipc", "pid", "net", "uts", "cgroup-try")
_END_SECONDS = 5.0


class BubblewrapSandbox:
    """Starts one bubblewrap per session.

    Args:
        limits: what each session may use.
        import_paths: folders of importable packages, readable inside.
        preload: modules imported before a session is handed out.

    Raises:
        SandboxUnavailableError: bubblewrap is not installed, or it may not make namespaces.
    """

    def __init__(
        self,
        limits: SandboxLimits,
        *,
        import_paths: Sequence[Path] = (),
        preload: Sequence[str] = (),
    ) -> None:
        found = shutil.which("bwrap")
        if found is None:
            raise SandboxUnavailableError("bubblewrap (`bwrap`) is not installed")
        self.limits = limits
        self._bubblewrap = found
        self._packages = Packages.of(import_paths, preload)
        self._group_parents = find_parents()
        try:
            self.start().close()
        except SandboxFailedError as error:
            raise SandboxUnavailableError(f"bubblewrap does not work here: {error}") from error

    def start(self) -> ChannelSession:
        """A session without a program."""
        outside, inside = socket.socketpair()
        filter_file = seal_filter(network=True)
        told, tell = os.pipe()
        config = self._config(inside.fileno(), filter_file)
        try:
            harness = HarnessProcess(
                self._command(config, tell), (inside.fileno(), filter_file, tell)
            )
        finally:
            inside.close()
            os.close(filter_file)
            os.close(tell)
        place = _Place(harness.process, config.user, told)
        session = ChannelSession(outside, self.limits, watch=place, kill=place.kill)
        try:
            place.find_first_process()
            session.wait_until_ready()
            place.set_limits(self.limits, self._group_parents)
        except (SandboxFailedError, OSError) as error:
            raise harness.failed(session, error) from error
        harness.is_started()
        return session

    def close(self) -> None:
        """Nothing is prepared ahead."""

    def _config(self, channel: int, filter_file: int) -> HarnessConfig:
        return HarnessConfig(
            channel=channel,
            seccomp=filter_file,
            work=WORK,
            user=lend_user() if os.geteuid() == 0 else None,
            output_bytes=self.limits.output_bytes,
            rlimits=resource_limits(self.limits, has_group=self._group_parents is not None),
            import_paths=tuple(map(os.fspath, self._packages.import_paths)),
            preload=self._packages.preload,
        )

    def _command(self, config: HarnessConfig, tell: int) -> list[str]:
        interpreter = own_interpreter()
        command = [self._bubblewrap, *(f"--unshare-{name}" for name in _NAMESPACES), "--as-pid-1"]
        command += ["--info-fd", str(tell), "--hostname", "sandbox", "--cap-drop", "ALL"]
        if config.user is None:
            command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
        else:  # given up by the harness before it is ready
            command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        command += _file_system(interpreter.folders(self._packages.import_paths))
        command += ["--perms", "0777", "--size", str(self.limits.file_bytes), "--tmpfs", WORK]
        return [*command, "--remount-ro", "/", "--", *interpreter.command(config.text())]


def _file_system(folders: Sequence[Path]) -> list[str]:
    arguments: list[str] = []
    for parent in dict.fromkeys(step for path in folders for step in path.parents[-2::-1]):
        # bubblewrap makes them for root alone, and the program's user could not pass
        arguments += ["--perms", "0755", "--dir", os.fspath(parent)]
    for folder in folders:
        if folder.is_symlink():
            arguments += ["--symlink", os.readlink(folder), os.fspath(folder)]
        else:
            arguments += ["--ro-bind", os.fspath(folder), os.fspath(folder)]
    arguments += ["--proc", "/proc"]
    for name in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    if not any(folder.is_relative_to(_TEMPORARY) for folder in folders):
        arguments += ["--symlink", WORK, _TEMPORARY]
    return arguments


class _Place:
    """The processes of one bubblewrap, seen from outside, and what limits them."""

    def __init__(self, process: subprocess.Popen[bytes], user: int | None, told: int) -> None:
        self._process = process
        self._user = user
        self._told = told
        self._first: int | None = None  # a pidfd, so that a number used again is never hit
        self._first_number = 0
        self._group: ControlGroup | None = None
        self._watch: Watch | None = None

    def find_first_process(self) -> None:
        """Learn from bubblewrap which process is the first one inside."""
        with os.fdopen(self._told, "rb") as source:
            text = source.read()
        if not text:
            raise SandboxFailedError("bubblewrap ended at once")
        self._first_number = int(json.loads(text)["child-pid"])
        self._first = os.pidfd_open(self._first_number)

    def set_limits(self, limits: SandboxLimits, parents: dict[str, Path] | None) -> None:
        """Put the harness into a group; what it starts later is born in there."""
        if parents is None:
            self._watch = TreeWatch(self._first_number, limits, scratch=None)
            return
        self._group = make_group(parents, limits)
        self._group.add(self._first_number)
        self._watch = self._group

    def begin(self) -> None:
        """An invocation begins."""
        if self._watch is not None:
            self._watch.begin()

    def breach(self) -> Ending | None:
        """The limit that is exceeded now."""
        return None if self._watch is None else self._watch.breach()

    def kill(self) -> None:
        """Kill the first process, and with it the kernel kills the whole PID namespace."""
        if self._first is None:
            self._process.kill()
        else:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            os.close(self._first)
        with suppress(subprocess.TimeoutExpired):  # killed, and the kernel takes its time
            self._process.wait(_END_SECONDS)
        if self._group is not None:
            self._group.close()
        take_back(self._user)

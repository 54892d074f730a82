"""Runs programs inside a sandbox: the first process in there. Standard library only.

It gives up its rights, says that it is ready, takes a program, and forks one child per invocation.
It judges nothing and knows no expected answer. Whoever takes it over gains a voice that could
already say anything: the program's own output. When its channel closes, everything here dies.
"""

from __future__ import annotations

import builtins
import json
import os
import select
import sys
import time
from importlib import import_module

from . import execute, lockdown  # noqa: TID251 - inside, this folder is not part of m1

TYPE_CHECKING = False  # importing `typing` would be a sixth of the start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_HEADER_BYTES = 4
_CHUNK_BYTES = 1 << 16
_POLL_SECONDS = 0.05


class Channel:
    """Length-prefixed JSON over the one descriptor that leads outside."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def send(self, message: Mapping[str, Any]) -> None:
        """One message."""
        body = json.dumps(message).encode()
        left = memoryview(len(body).to_bytes(_HEADER_BYTES, "big") + body)
        while left:
            left = left[os.write(self.descriptor, left) :]

    def receive(self) -> dict[str, Any] | None:
        """One message; None when the outside has gone."""
        header = self._read(_HEADER_BYTES)
        body = header and self._read(int.from_bytes(header, "big"))
        return json.loads(body) if body else None

    def _read(self, size_bytes: int) -> bytes:
        parts: list[bytes] = []
        while size_bytes:
            part = os.read(self.descriptor, min(size_bytes, 1 << 20))
            if not part:
                return b""
            parts.append(part)
            size_bytes -= len(part)
        return b"".join(parts)


class Harness:
    """One session from the inside."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._work: str = config["work"]
        self._channel = Channel(config["channel"])
        self._files: dict[str, bytes] = {}

    def serve(self) -> None:
        """Answer until the channel closes."""
        self._channel.send({"ready": True})
        while (message := self._channel.receive()) is not None:
            if "files" in message:
                self._files = {name: _bytes(text) for name, text in message["files"].items()}
                self._channel.send({"loaded": self._can_lay_out()})
                continue
            answer = self._invoke(message)
            if answer is None:
                return
            self._lay_out()  # if it cannot be done the session ends here, with the guilty one
            self._channel.send(answer)

    def _can_lay_out(self) -> bool:
        try:
            self._lay_out()
        except (OSError, ValueError):  # too large, or named so that it would lie elsewhere
            return False
        return True

    def _lay_out(self) -> None:
        """The program's files and nothing else: one invocation leaves the next one nothing."""
        for name in os.listdir(self._work):
            _remove(os.path.join(self._work, name))
        for name, content in self._files.items():
            path = os.path.join(self._work, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)

    def _invoke(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        stdin = _unlinked_file(f"{self._work}/.stdin", _bytes(message.get("stdin", "")))
        readers, writers = {}, {"stdin": stdin}
        for name in ("stdout", "stderr", "value"):
            readers[name], writers[name] = os.pipe()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            execute.become_program(self._config, message, writers)
        for descriptor in writers.values():
            os.close(descriptor)
        watched = _Child(child, readers, self._config["output_bytes"], self._channel.descriptor)
        try:
            return watched.watch(started, message["wall_seconds"])
        finally:
            watched.forget()


class _Child:
    """A running child, what it has said so far, and its end."""

    def __init__(
        self, process: int, readers: Mapping[str, int], output_bytes: int, channel: int
    ) -> None:
        self._process = process
        self._output_bytes = output_bytes
        self._channel = channel
        self._names = {descriptor: name for name, descriptor in readers.items()}
        self._said = {name: bytearray() for name in readers}
        self._poll = select.poll()
        self._end = os.pidfd_open(process)
        for descriptor in (*self._names, self._end):
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(channel, 0)  # only its hang-up
        for descriptor in self._names:
            os.set_blocking(descriptor, False)

    def watch(self, started: float, wall_seconds: float) -> dict[str, Any] | None:
        """Read until it ends or must be ended; None when the outside has gone."""
        ending = self._until_over(started + wall_seconds)
        wall = time.monotonic() - started
        exit_code, cpu = self._kill_everything()
        if ending == "gone":
            return None
        for descriptor in self._names:
            while self._read(descriptor):
                pass
        if self._is_too_loud():
            ending = "output"
        value = self._said["value"].decode("utf-8", "replace") or None
        return {
            "ending": ending,
            "exit_code": exit_code,
            "stdout": _text(self._said["stdout"][: self._output_bytes]),
            "stderr": _text(self._said["stderr"][: self._output_bytes]),
            "value": None if ending == "output" else value,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
        }

    def forget(self) -> None:
        """Close what was opened."""
        for descriptor in (*self._names, self._end):
            os.close(descriptor)

    def _until_over(self, deadline: float) -> str:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "wall time"
            for descriptor, event in self._poll.poll(1000 * min(left, _POLL_SECONDS)):
                if descriptor == self._channel:
                    return "gone"
                if descriptor == self._end:
                    return "exited"
                if event & select.POLLIN:
                    self._read(descriptor)
                else:
                    self._poll.unregister(descriptor)
            if self._is_too_loud():
                return "output"

    def _read(self, descriptor: int) -> bool:
        if self._is_too_loud():
            return False
        try:
            part = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._said[self._names[descriptor]] += part
        return bool(part)

    def _is_too_loud(self) -> bool:
        return sum(map(len, self._said.values())) > self._output_bytes

    def _kill_everything(self) -> tuple[int | None, float]:
        """Kill whatever the child started, until nothing is left; exit code and CPU seconds."""
        exit_code, cpu = None, 0.0
        while True:
            process, status, usage = _kill_and_reap()
            if process == 0:
                return exit_code, cpu
            cpu += usage.ru_utime + usage.ru_stime
            if process == self._process:
                exit_code = os.waitstatus_to_exitcode(status)


def _kill_and_reap() -> tuple[int, int, Any]:
    lockdown.kill_all_others()
    try:
        return os.wait4(-1, 0)
    except ChildProcessError:
        return 0, 0, None


def _unlinked_file(path: str, content: bytes) -> int:
    with open(path, "wb") as file:
        file.write(content)
    descriptor = os.open(path, os.O_RDONLY)
    os.unlink(path)
    return descriptor


def _remove(path: str) -> None:
    """Remove a file, a link or a whole folder; `shutil` would be a fifth of the start."""
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
        return
    for folder, inner, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in inner:
            found = os.path.join(folder, name)
            (os.unlink if os.path.islink(found) else os.rmdir)(found)
    os.rmdir(path)


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _text(content: bytes | bytearray) -> str:
    return content.decode("latin-1")


def main() -> None:
    """Lock down, import what was asked for, serve. Never returns into an interpreter's clean-up."""
    config = json.loads(sys.argv[1])
    os.chdir("/")
    sys.path[:] = [*config["import_paths"], *sys.path[1:]]  # the first led to this file
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # `-S` leaves them out
    lockdown.lock_down(config)
    for name in config["preload"]:
        import_module(name)
    Harness(config).serve()
    lockdown.kill_all_others()
    os._exit(0)

"""The outside end of one started sandbox: channel, clock, limits, kill. Trusts nothing it reads.

Everything after the program was handed over is the program's doing: a harness that dies, lies or
falls silent is an ending of the program, never an error of ours.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from m1.infra.errors import SandboxFailedError
from m1.infra.sandbox.protocol import (
    Call,
    Command,
    Ending,
    Invocation,
    Outcome,
    Program,
    SandboxLimits,
    Script,
)

START_SECONDS = 30.0  # ours: a busy machine may be slow, a broken one is silent
_ANSWER_SECONDS = 0.7  # ours: what the harness gets to kill and report after the wall time
_WATCH_SECONDS = 0.05
_HEADER_BYTES = 4
_ESCAPED = 6  # the most characters that one byte becomes in JSON


class Watch(Protocol):
    """Looks at a running session from outside and says what it has run into."""

    def begin(self) -> None:
        """An invocation begins."""
        ...

    def breach(self) -> Ending | None:
        """The limit that is exceeded now."""
        ...


class ChannelSession:
    """A session over a socket to a harness; `kill` ends every process of the sandbox."""

    def __init__(
        self,
        channel: socket.socket,
        limits: SandboxLimits,
        *,
        watch: Watch,
        kill: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._limits = limits
        self._watch = watch
        self._kill = kill
        self._is_closed = False

    def load(self, program: Program) -> None:
        """Hand over the program; one that cannot be laid out ends the session: its own doing.

        Raises:
            SandboxFailedError: the sandbox is no longer there.
        """
        files = dict(program.files)
        if program.source:
            files["solution.py"] = program.source.encode("utf-8", "replace")
        message = {"files": {name: data.decode("latin-1") for name, data in files.items()}}
        try:
            self._send(message)
            answer = self._receive(time.monotonic() + START_SECONDS, 1024)
        except (OSError, ValueError) as error:
            raise SandboxFailedError(f"the sandbox did not take the program: {error}") from error
        if answer.get("loaded") is not True:
            self.close()

    def invoke(self, invocation: Invocation) -> Outcome:
        """Run the program once; a session that has ended answers BROKEN."""
        if self._is_closed:
            return Outcome(ending=Ending.BROKEN)
        self._watch.begin()
        started = time.monotonic()
        try:
            self._send(_message(invocation, self._limits))
            answer = self._receive(
                started + self._limits.wall_seconds + _ANSWER_SECONDS,
                _ESCAPED * self._limits.output_bytes + 4096,
                on_wait=self._refuse_breach,
            )
            outcome = _outcome(answer)
        except _BreachError as breach:
            outcome = Outcome(ending=breach.ending)
        except TimeoutError:
            outcome = Outcome(ending=Ending.WALL_TIME)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            outcome = Outcome(ending=Ending.BROKEN)
        return self._settle(outcome, time.monotonic() - started)

    def _settle(self, outcome: Outcome, wall_seconds: float) -> Outcome:
        """The final word: what the watch saw outweighs what the inside said."""
        ending = self._watch.breach() or outcome.ending
        if outcome.cpu_seconds > self._limits.cpu_seconds:
            ending = Ending.CPU_TIME
        has_no_answer = outcome.exit_code is None
        if has_no_answer:
            self.close()
        return Outcome(
            ending=ending,
            exit_code=outcome.exit_code,
            stdout=outcome.stdout,
            stderr=outcome.stderr,
            value_json=outcome.value_json,
            wall_seconds=wall_seconds,
            cpu_seconds=outcome.cpu_seconds,
        )

    def close(self) -> None:
        """Kill everything, once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._channel.close()
        self._kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Return when the harness has given up its rights.

        Raises:
            SandboxFailedError: it did not get there.
        """
        try:
            ready = self._receive(time.monotonic() + START_SECONDS, 1024).get("ready")
        except (OSError, ValueError) as error:
            raise SandboxFailedError(f"the sandbox did not become ready: {error}") from error
        if ready is not True:
            raise SandboxFailedError("the sandbox did not become ready")

    def _refuse_breach(self) -> None:
        ending = self._watch.breach()
        if ending is not None:
            raise _BreachError(ending)

    def _send(self, message: Mapping[str, Any]) -> None:
        body = json.dumps(message).encode()
        self._channel.settimeout(START_SECONDS)
        self._channel.sendall(len(body).to_bytes(_HEADER_BYTES, "big") + body)

    def _receive(
        self, deadline: float, most_bytes: int, on_wait: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        size = int.from_bytes(self._read(_HEADER_BYTES, deadline, on_wait), "big")
        if size > most_bytes:
            raise ValueError(f"a message of {size} bytes, at most {most_bytes}")
        message = json.loads(self._read(size, deadline, on_wait))
        if not isinstance(message, dict):
            raise TypeError("the message is not a mapping")
        return message

    def _read(self, size_bytes: int, deadline: float, on_wait: Callable[[], None]) -> bytes:
        parts = bytearray()
        while len(parts) < size_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no answer in time")
            self._channel.settimeout(min(left, _WATCH_SECONDS))
            with contextlib.suppress(TimeoutError):
                part = self._channel.recv(size_bytes - len(parts))
                if not part:
                    raise ConnectionError("the sandbox closed its channel")
                parts += part
                continue
            on_wait()
        return bytes(parts)


class _BreachError(Exception):
    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


def _message(invocation: Invocation, limits: SandboxLimits) -> dict[str, Any]:
    message: dict[str, Any] = {"wall_seconds": limits.wall_seconds}
    match invocation:
        case Script():
            return message | {"kind": "script", "stdin": invocation.stdin.decode("latin-1")}
        case Call():
            return message | {
                "kind": "call",
                "function": invocation.function,
                "arguments": list(invocation.arguments),
                "module": invocation.module,
            }
        case Command():
            return message | {
                "kind": "command",
                "argv": list(invocation.argv),
                "stdin": invocation.stdin.decode("latin-1"),
            }


def _outcome(answer: Mapping[str, Any]) -> Outcome:
    value = answer["value"]
    return Outcome(
        ending=Ending(answer["ending"]),
        exit_code=int(answer["exit_code"]),
        stdout=str(answer["stdout"]).encode("latin-1"),
        stderr=str(answer["stderr"]).encode("latin-1"),
        value_json=None if value is None else str(value),
        cpu_seconds=float(answer["cpu_seconds"]),
    )

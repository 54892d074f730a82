"""The launcher's end of a fork server: start it, ask it for supervisors, notice when it is gone."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from m1.infra.errors import StageFailedError


class ForkServer:
    """One fork server (fork_server.py), below this process. Safe to use from several threads.

    Args:
        preload: modules it imports before the first job.
        environment: of the server, and so of the imports.
    """

    def __init__(self, preload: Sequence[str], environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                [sys.executable, "-m", "m1.infra.launch.fork_server", *preload],
                stdin=theirs.fileno(),
                env=self.environment,
                start_new_session=True,
            )
        self._socket = ours
        self._answers = ours.makefile("rb")

    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def fork(self, request: Mapping[str, Any]) -> int:
        """Process number of a new supervisor.

        Raises:
            StageFailedError: the server could not import what it was told to, or is gone.
        """
        with self._lock:
            try:
                self._socket.sendall(json.dumps(dict(request)).encode() + b"\n")
                answer = json.loads(self._answers.readline() or b"{}")
            except OSError as error:
                answer = {"error": str(error)}
        if "process_id" not in answer:
            raise StageFailedError(
                f"no job could be started: {answer.get('error', 'the fork server has ended')}"
            )
        return int(answer["process_id"])

    def close(self) -> None:
        """End the server; supervisors that are still alive save and stop."""
        self._answers.close()
        self._socket.close()
        self._process.wait()


def server_environment(job: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter reads once, when it starts: all but what each job sets for itself.

    One thread: a pool of threads would not survive a fork; workers choose their own number.
    """
    return {**job, "OMP_NUM_THREADS": "1"}

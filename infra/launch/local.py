"""Jobs on this machine: torchrun below a small supervisor. One node only.

Without a GPU driver the supervisors are forked from a process that has imported torch already
(fork_server.py); beside a GPU each job is an interpreter of its own.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from m1.infra.errors import InvalidSettingError
from m1.infra.launch.agent import GPU_DRIVERS
from m1.infra.launch.fork_client import ForkServer, server_environment
from m1.infra.launch.protocol import JobHandle, JobRequest, JobState, JobStatus
from m1.infra.launch.supervisor import supervisor_arguments
from m1.infra.launch.work_files import (
    ANSWER_NAMES,
    EXIT_NAME,
    HANDLE_NAME,
    LOG_NAME,
    WORKER_EXIT_NAME,
    read_exit,
    write_json,
    write_stop_grace,
)
from m1.infra.lease import process_start

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_TORCHRUN = ("torch.distributed.elastic.multiprocessing.errors", "torch.distributed.launcher.api")
_GENERIC_FAILURE = 1
_MARGIN_SECONDS = 5.0  # ours: the supervisor kills at the end of the grace; then we give up on it


class LocalLauncher:
    """Starts each job in its own session with its own log; a restart can adopt it.

    Args:
        stop_grace_seconds: what a job has to stop in when its runner dies.
        preload: modules that are worth importing before a job needs them.
    """

    def __init__(self, *, stop_grace_seconds: float = 20.0, preload: Sequence[str] = ()) -> None:
        self._stop_grace_seconds = stop_grace_seconds
        self._preload = (*_TORCHRUN, *preload)
        self._server: ForkServer | None = None
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def warm_up(self, environment: Mapping[str, str]) -> None:
        """Begin to import now what the first job with this environment will need."""
        if not has_gpu_driver():
            self._server_for(_job_environment(environment, processes=1))

    def close(self) -> None:
        """Let go of the fork server; jobs that still run save and stop."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def submit(self, request: JobRequest) -> JobHandle:
        """Start torchrun with `request.processes` workers."""
        if request.nodes != 1 or request.processes < 1:
            raise InvalidSettingError(
                field="nodes, processes",
                value=(request.nodes, request.processes),
                accepted="1 node and at least 1 process for local jobs",
            )
        work_dir = request.work_dir.absolute()
        work_dir.mkdir(parents=True, exist_ok=True)
        for name in ANSWER_NAMES:
            (work_dir / name).unlink(missing_ok=True)
        environment = _job_environment(request.environment, processes=request.processes)
        wanted = _supervisor_request(request, work_dir, self._stop_grace_seconds)
        start = self._spawn if has_gpu_driver() else self._fork
        process_id = start(wanted, environment)
        details = {
            "process_id": process_id,
            "process_start": process_start(process_id) or "",
            "work_dir": str(work_dir),
        }
        write_json(work_dir / HANDLE_NAME, {"name": request.name, "details": details})
        return JobHandle(launcher="local", name=request.name, details=details)

    def _fork(self, wanted: Mapping[str, Any], environment: dict[str, str]) -> int:
        server = self._server_for(environment)
        return server.fork({**wanted, "environment": environment})

    def _server_for(self, environment: Mapping[str, str]) -> ForkServer:
        """The server whose interpreter read the same environment; an older one is let go."""
        needed = server_environment(environment)
        if (
            self._server is None
            or not self._server.is_alive()
            or self._server.environment != needed
        ):
            self.close()
            self._server = ForkServer(self._preload, needed)
        return self._server

    def _spawn(self, wanted: Mapping[str, Any], environment: dict[str, str]) -> int:
        words = [sys.executable, "-m", "m1.infra.launch.supervisor"]
        words += supervisor_arguments(wanted, parent=os.getpid())
        with (Path(wanted["work_dir"]) / LOG_NAME).open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return child.pid

    def poll(self, handle: JobHandle) -> JobStatus:
        """RUNNING while the supervisor lives; then the worker's own exit code."""
        if self._is_alive(handle):
            return JobStatus(state=JobState.RUNNING)
        work_dir = Path(handle.details["work_dir"])
        exit_code = read_exit(work_dir / EXIT_NAME)
        if exit_code is None:
            return JobStatus(state=JobState.ENDED, exit_code=137, detail="supervisor was killed")
        if exit_code == _GENERIC_FAILURE:
            # another rank's collapse may be all that the agent saw; the worker knows better
            exit_code = read_exit(work_dir / WORKER_EXIT_NAME) or exit_code
        return JobStatus(state=JobState.ENDED, exit_code=exit_code)

    def logs(self, handle: JobHandle, *, offset_bytes: int = 0) -> bytes:
        """Output of the job from `offset_bytes` on."""
        path = Path(handle.details["work_dir"]) / LOG_NAME
        if not path.exists():
            return b""
        with path.open("rb") as source:
            source.seek(offset_bytes)
            return source.read()

    def cancel(self, handle: JobHandle, *, grace_seconds: float = 20.0) -> None:
        """SIGTERM; the supervisor kills what is left after `grace_seconds` and says so.

        Only a supervisor that does not even do that is killed from here, with its whole tree.
        """
        if not self._is_alive(handle):
            return
        write_stop_grace(Path(handle.details["work_dir"]), grace_seconds)
        try:
            supervisor = psutil.Process(handle.details["process_id"])
            supervisor.terminate()
            deadline = time.monotonic() + grace_seconds + _MARGIN_SECONDS
            while self._is_alive(handle) and time.monotonic() < deadline:
                time.sleep(0.02)
            if self._is_alive(handle):
                _kill_all([*supervisor.children(recursive=True), supervisor])
        except psutil.NoSuchProcess:
            return

    def adopt(self, request: JobRequest) -> JobHandle | None:
        """The live job of the same name in the same work folder."""
        path = request.work_dir.absolute() / HANDLE_NAME
        try:
            record = json.loads(path.read_text())
            handle = JobHandle(launcher="local", name=record["name"], details=record["details"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return handle if handle.name == request.name and self._is_alive(handle) else None

    def _is_alive(self, handle: JobHandle) -> bool:
        process_id = handle.details["process_id"]
        child = self._children.get(process_id)
        if child is not None and child.poll() is not None:
            return False
        return bool(process_start(process_id) == handle.details["process_start"])


def has_gpu_driver() -> bool:
    """Whether jobs must be interpreters of their own: CUDA does not survive a fork."""
    return any(path.exists() for path in GPU_DRIVERS)


def _supervisor_request(
    request: JobRequest, work_dir: Path, grace_seconds: float
) -> dict[str, Any]:
    return {
        "work_dir": str(work_dir),
        "grace_seconds": grace_seconds,
        "processes": request.processes,
        "module": request.module,
        "arguments": list(request.arguments),
    }


def _job_environment(ours: Mapping[str, str], *, processes: int) -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **passed_on, **ours}


def _kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_MARGIN_SECONDS)

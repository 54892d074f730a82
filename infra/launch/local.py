"""Jobs on this machine: torchrun below a small supervisor. One node only."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from m1.infra.errors import InvalidSettingError
from m1.infra.launch.protocol import JobHandle, JobRequest, JobState, JobStatus
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
_GENERIC_FAILURE = 1
_MARGIN_SECONDS = 5.0  # ours: the supervisor kills at the end of the grace; then we give up on it


class LocalLauncher:
    """Starts each job in its own session with its own log; a restart can adopt it."""

    def __init__(self, *, stop_grace_seconds: float = 20.0) -> None:
        self._stop_grace_seconds = stop_grace_seconds
        self._children: dict[int, subprocess.Popen[bytes]] = {}

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
        with (work_dir / LOG_NAME).open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                _supervisor(request, work_dir, self._stop_grace_seconds),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_job_environment(request, os.environ),
                start_new_session=True,
            )
        self._children[child.pid] = child
        details = {
            "process_id": child.pid,
            "process_start": process_start(child.pid) or "",
            "work_dir": str(work_dir),
        }
        write_json(work_dir / HANDLE_NAME, {"name": request.name, "details": details})
        return JobHandle(launcher="local", name=request.name, details=details)

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
                for process in [*supervisor.children(recursive=True), supervisor]:
                    _kill(process)
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


def _supervisor(request: JobRequest, work_dir: Path, grace_seconds: float) -> list[str]:
    command = [sys.executable, "-m", "m1.infra.launch.supervisor", str(work_dir)]
    command += [str(os.getpid()), str(grace_seconds), str(request.processes)]
    return [*command, "--", request.module, *request.arguments]


def _job_environment(request: JobRequest, environ: Mapping[str, str]) -> dict[str, str]:
    passed_on = {name: environ[name] for name in _PASSED_ON if name in environ}
    threads = max(1, (os.cpu_count() or 1) // request.processes)
    ours = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    return {**ours, **passed_on, **request.environment}


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return

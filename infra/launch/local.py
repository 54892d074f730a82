"""Jobs on this machine: torchrun below a small supervisor. One node only."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from m1.infra.errors import InvalidSettingError
from m1.infra.launch.protocol import JobHandle, JobRequest, JobState, JobStatus
from m1.infra.lease import process_start

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_ANSWERS = ("exit.json", "worker_exit.json", "handle.json")


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
        for name in _ANSWERS:
            (work_dir / name).unlink(missing_ok=True)
        supervisor = [sys.executable, "-m", "m1.infra.launch.supervisor", str(work_dir)]
        with (work_dir / "job.log").open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                [*supervisor, str(self._stop_grace_seconds), "--", *_torchrun(request)],
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
        _write_json(work_dir / "handle.json", {"name": request.name, "details": details})
        return JobHandle(launcher="local", name=request.name, details=details)

    def poll(self, handle: JobHandle) -> JobStatus:
        """RUNNING while the supervisor lives; then the worker's own exit code."""
        if self._is_alive(handle):
            return JobStatus(state=JobState.RUNNING)
        work_dir = Path(handle.details["work_dir"])
        exit_code = _read_exit(work_dir / "exit.json")
        if exit_code is None:
            return JobStatus(state=JobState.ENDED, exit_code=137, detail="supervisor was killed")
        if exit_code != 0:
            # torchrun answers 1 for every failed worker; the worker says what really happened
            exit_code = _read_exit(work_dir / "worker_exit.json") or exit_code
        return JobStatus(state=JobState.ENDED, exit_code=exit_code)

    def logs(self, handle: JobHandle, *, offset_bytes: int = 0) -> bytes:
        """Output of the job from `offset_bytes` on."""
        path = Path(handle.details["work_dir"]) / "job.log"
        if not path.exists():
            return b""
        with path.open("rb") as source:
            source.seek(offset_bytes)
            return source.read()

    def cancel(self, handle: JobHandle, *, grace_seconds: float = 20.0) -> None:
        """SIGTERM, wait, then SIGKILL the whole tree."""
        if not self._is_alive(handle):
            return
        try:
            supervisor = psutil.Process(handle.details["process_id"])
            supervisor.terminate()
            deadline = time.monotonic() + grace_seconds
            while self._is_alive(handle) and time.monotonic() < deadline:
                time.sleep(0.05)
            if self._is_alive(handle):
                for process in [*supervisor.children(recursive=True), supervisor]:
                    _kill(process)
        except psutil.NoSuchProcess:
            return

    def adopt(self, request: JobRequest) -> JobHandle | None:
        """The live job of the same name in the same work folder."""
        path = request.work_dir.absolute() / "handle.json"
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
        return process_start(process_id) == handle.details["process_start"]


def _torchrun(request: JobRequest) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--local-addr", "127.0.0.1", "--nproc-per-node", str(request.processes)]
    return [*torchrun, "--monitor-interval", "0.1", "-m", request.module, *request.arguments]


def _job_environment(request: JobRequest, environ: Mapping[str, str]) -> dict[str, str]:
    passed_on = {name: environ[name] for name in _PASSED_ON if name in environ}
    threads = max(1, (os.cpu_count() or 1) // request.processes)
    return {"OMP_NUM_THREADS": str(threads), **passed_on, **request.environment}


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _read_exit(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["exit_code"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(path)

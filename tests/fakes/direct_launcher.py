"""A launcher of plain child processes: no torchrun, so a job starts in a tenth of a second."""

import subprocess
import sys

from m1.infra.launch.protocol import JobHandle, JobState, JobStatus


class DirectLauncher:
    """Runs `python -m module arguments` with the log where the local launcher puts it."""

    def __init__(self):
        self._jobs = {}

    def warm_up(self, environment):
        return

    def close(self):
        return

    def submit(self, request):
        with (request.work_dir / "job.log").open("ab") as log:
            self._jobs[request.name] = subprocess.Popen(
                [sys.executable, "-m", request.module, *request.arguments],
                env=dict(request.environment),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return JobHandle(launcher="direct", name=request.name, details={})

    def poll(self, handle):
        code = self._jobs[handle.name].poll()
        state = JobState.RUNNING if code is None else JobState.ENDED
        return JobStatus(state=state, exit_code=code)

    def logs(self, handle, *, offset_bytes=0):
        return b""

    def cancel(self, handle, *, grace_seconds=20.0):
        job = self._jobs[handle.name]
        job.terminate()
        try:
            job.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()

    def adopt(self, request):
        return None

"""The local launcher: real processes, a real torchrun agent, tiny workers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from m1.infra.errors import InvalidSettingError, StageFailedError
from m1.infra.launch import agent
from m1.infra.launch.local import LocalLauncher
from m1.infra.launch.protocol import JobHandle, JobRequest, JobState, JobStatus
from m1.infra.lease import process_start

pytestmark = pytest.mark.slow

_WORKER = '''
"""Writes what it sees, then ends as its argument says."""
import json, os, pathlib, signal, subprocess, sys, time

mode, work_dir = sys.argv[1], pathlib.Path(sys.argv[2])
rank = os.environ["RANK"]
seen = {"arguments": sys.argv, "pid": os.getpid(), "name": __name__}
seen["world"] = os.environ["WORLD_SIZE"]
stopped = []
if mode == "slow-start":
    (work_dir / f"starting-{rank}").touch()
    time.sleep(1.5 if rank == "1" else 0.0)
if mode in ("preempt", "slow-start"):
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    from m1.infra.launch.stop_signals import EARLY
    stopped += [1] * EARLY.count
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    seen["child"] = subprocess.Popen(["sleep", "600"], start_new_session=True).pid
part = work_dir / f"seen-{rank}.part"
part.write_text(json.dumps(seen))
part.rename(work_dir / f"seen-{rank}.json")
print("hello from rank", rank)
if mode.isdigit():
    sys.exit(int(mode) if rank == "0" else 0)
if mode == "raise":
    raise RuntimeError("what went wrong")
if mode == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
while not stopped:
    time.sleep(0.02)
sys.exit(75)
'''

_SUBMITTER = """
import json, pathlib, sys, time
from m1.infra.launch.local import LocalLauncher
from m1.infra.launch.protocol import JobRequest

request = json.loads(sys.argv[1])
launcher = LocalLauncher(stop_grace_seconds=float(sys.argv[2]))
launcher.submit(JobRequest(**{**request, "arguments": tuple(request["arguments"]),
                              "work_dir": pathlib.Path(request["work_dir"])}))
time.sleep(600)
"""

Build = Callable[..., JobRequest]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[LocalLauncher]:
    """One launcher for all tests that need nothing special: it has imported torch already."""
    launcher = LocalLauncher(stop_grace_seconds=30.0)
    yield launcher
    launcher.close()


@pytest.fixture
def launcher(shared_server: LocalLauncher) -> LocalLauncher:
    return shared_server


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "tiny_worker.py").write_text(_WORKER)
    return folder


@pytest.fixture
def build(tmp_path: Path, modules: Path) -> Build:
    def request(mode: str, *, processes: int = 1) -> JobRequest:
        work_dir = tmp_path / "work"
        return JobRequest(
            name=f"job-{mode}",
            module="tiny_worker",
            arguments=(mode, str(work_dir)),
            processes=processes,
            work_dir=work_dir,
            environment={"PYTHONPATH": str(modules), "OMP_NUM_THREADS": "1"},
        )

    return request


@pytest.fixture
def submitted(launcher: LocalLauncher) -> Iterator[Callable[[JobRequest], JobHandle]]:
    handles: list[JobHandle] = []

    def submit(request: JobRequest) -> JobHandle:
        handles.append(launcher.submit(request))
        return handles[-1]

    yield submit
    for handle in handles:
        launcher.cancel(handle, grace_seconds=0)


def wait_for(what: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def ended(launcher: LocalLauncher, handle: JobHandle) -> JobStatus:
    wait_for(lambda: launcher.poll(handle).state is JobState.ENDED)
    return launcher.poll(handle)


def seen(request: JobRequest, rank: int = 0) -> dict:
    path = request.work_dir / f"seen-{rank}.json"
    wait_for(path.exists)
    return json.loads(path.read_text())


def alive(process_id: int) -> bool:
    return process_start(process_id) is not None


@pytest.mark.parametrize("code", [0, 1, 65, 75])
def test_the_exit_code_of_the_worker_arrives(launcher, build, submitted, code):
    request = build(str(code))
    handle = submitted(request)
    assert launcher.poll(handle).exit_code is None
    assert ended(launcher, handle).exit_code == code
    assert seen(request)["arguments"][1:] == list(request.arguments)
    assert seen(request)["name"] == "__main__"
    assert b"hello from rank 0" in launcher.logs(handle)
    whole = launcher.logs(handle)
    assert launcher.logs(handle, offset_bytes=6) == whole[6:]


def test_two_ranks_run_and_one_bad_code_ends_both(launcher, build, submitted):
    request = build("65", processes=2)
    handle = submitted(request)
    assert ended(launcher, handle).exit_code == 65
    assert seen(request)["world"] == "2"


def test_what_a_worker_raised_is_in_the_log(launcher, build, submitted):
    handle = submitted(build("raise"))
    assert ended(launcher, handle).exit_code == 1
    log = launcher.logs(handle).decode()
    assert "RuntimeError: what went wrong" in log
    assert "elastic" not in log.lower()


def test_a_killed_worker_ends_with_its_signal(launcher, build, submitted):
    handle = submitted(build("kill"))
    assert ended(launcher, handle).exit_code == 128 + signal.SIGKILL


def test_a_generic_failure_is_explained_by_the_workers_own_answer(launcher, build, submitted):
    request = build("1")
    handle = submitted(request)
    seen(request)
    (request.work_dir / "worker_exit.json").write_text('{"exit_code": 75}')
    assert ended(launcher, handle).exit_code == 75


def test_sigterm_reaches_the_worker_and_its_code_arrives(launcher, build, submitted):
    request = build("preempt")
    handle = submitted(request)
    seen(request)
    os.kill(handle.details["process_id"], signal.SIGTERM)
    assert ended(launcher, handle).exit_code == 75


def test_a_stop_that_comes_before_a_rank_listens_is_not_lost(launcher, build, submitted):
    request = build("slow-start", processes=2)
    handle = submitted(request)
    wait_for(lambda: all((request.work_dir / f"starting-{rank}").exists() for rank in (0, 1)))
    seen(request, 0)
    assert not (request.work_dir / "seen-1.json").exists()
    launcher.cancel(handle, grace_seconds=30)
    assert launcher.poll(handle).exit_code == 75


def test_cancel_waits_for_two_ranks_to_stop(launcher, build, submitted):
    request = build("preempt", processes=2)
    handle = submitted(request)
    workers = [seen(request, rank)["pid"] for rank in (0, 1)]
    launcher.cancel(handle, grace_seconds=30)
    assert launcher.poll(handle).exit_code == 75
    assert not any(alive(worker) for worker in workers)


def test_cancel_kills_a_deaf_job_and_its_children_after_the_grace(launcher, build, submitted):
    request = build("deaf")
    handle = submitted(request)
    facts = seen(request)
    started = time.monotonic()
    launcher.cancel(handle, grace_seconds=1.0)
    assert 1.0 <= time.monotonic() - started < 5.0
    assert launcher.poll(handle).exit_code == 128 + signal.SIGKILL
    assert not alive(facts["pid"])
    assert not alive(facts["child"])


def test_cancel_outlasts_the_grace_the_job_was_started_with(build):
    """The supervisor gives the job what cancel says, and is never shot before it reports."""
    launcher = LocalLauncher(stop_grace_seconds=600.0)
    request = build("deaf")
    with contextlib.closing(launcher):
        handle = launcher.submit(request)
        seen(request)
        launcher.cancel(handle, grace_seconds=0)
        status = launcher.poll(handle)
    assert (status.state, status.exit_code, status.detail) == (JobState.ENDED, 137, "")


@pytest.mark.parametrize("delay_seconds", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_cancel_at_any_moment_of_the_start_is_heard(launcher, build, submitted, delay_seconds):
    """Supervisor, agent and worker each have a moment in which they cannot listen yet."""
    handle = submitted(build("preempt"))
    time.sleep(delay_seconds)
    started = time.monotonic()
    launcher.cancel(handle, grace_seconds=30)
    assert launcher.poll(handle).exit_code not in (None, 0)
    assert time.monotonic() - started < 25, "only the end of the grace stopped it"


def test_cancel_of_an_ended_job_does_nothing(launcher, build, submitted):
    handle = submitted(build("0"))
    ended(launcher, handle)
    launcher.cancel(handle)
    assert launcher.poll(handle).exit_code == 0


@pytest.mark.parametrize(("mode", "exit_code"), [("preempt", 75), ("deaf", 137)])
def test_a_killed_parent_takes_the_tree_down(build, tmp_path, mode, exit_code):
    request = build(mode)
    plain = {
        "name": request.name,
        "module": request.module,
        "arguments": request.arguments,
        "processes": 1,
        "work_dir": str(request.work_dir),
        "environment": dict(request.environment),
    }
    parent = subprocess.Popen([sys.executable, "-c", _SUBMITTER, json.dumps(plain), "1"])
    facts = seen(request)
    handle = LocalLauncher().adopt(request)
    assert handle is not None
    tree = psutil.Process(handle.details["process_id"]).children(recursive=True)
    parent.kill()
    parent.wait()
    adopter = LocalLauncher()
    assert ended(adopter, handle).exit_code == exit_code
    assert not alive(facts["pid"])
    assert not any(alive(process.pid) for process in tree)


def test_a_killed_supervisor_leaves_no_worker(build, submitted, launcher):
    request = build("preempt")
    handle = submitted(request)
    worker = seen(request)["pid"]
    os.kill(handle.details["process_id"], signal.SIGKILL)
    status = ended(launcher, handle)
    assert (status.exit_code, status.detail) == (137, "supervisor was killed")
    wait_for(lambda: not alive(worker))


def test_a_killed_agent_leaves_no_worker(build, submitted, launcher):
    request = build("deaf")
    handle = submitted(request)
    facts = seen(request)
    psutil.Process(handle.details["process_id"]).children()[0].kill()
    assert ended(launcher, handle).exit_code == 137
    assert not alive(facts["pid"])
    assert not alive(facts["child"])


def test_adopt_finds_the_live_job_only(launcher, build, submitted):
    request = build("preempt")
    handle = submitted(request)
    other = LocalLauncher()
    assert other.adopt(request) == handle
    assert other.adopt(build("deaf")) is None
    again = JobHandle(**json.loads(json.dumps({
        "launcher": handle.launcher, "name": handle.name, "details": handle.details,
    })))  # fmt: skip
    seen(request)
    other.cancel(again, grace_seconds=30)
    assert other.poll(again).exit_code == 75
    assert other.adopt(request) is None


def test_a_reused_process_number_is_not_adopted(launcher, build):
    request = build("preempt")
    request.work_dir.mkdir()
    details = {"process_id": os.getpid(), "process_start": "1", "work_dir": str(request.work_dir)}
    (request.work_dir / "handle.json").write_text(
        json.dumps({"name": request.name, "details": details})
    )
    assert launcher.adopt(request) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}'])
def test_a_torn_handle_is_not_adopted(launcher, build, text):
    request = build("preempt")
    request.work_dir.mkdir()
    (request.work_dir / "handle.json").write_text(text)
    assert launcher.adopt(request) is None


def test_jobs_of_no_process_are_refused(launcher, build):
    with pytest.raises(InvalidSettingError, match="at least 1 process"):
        launcher.submit(build("0", processes=0))


def test_secrets_of_our_environment_stay_here(launcher, build, submitted, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "do-not-pass-on")
    request = build("preempt")
    handle = submitted(request)
    worker = psutil.Process(seen(request)["pid"])
    assert "SOME_TOKEN" not in worker.environ()
    assert handle.details.keys() == {"process_id", "process_start", "work_dir"}


def test_what_is_preloaded_is_imported_once_for_all_jobs(build, modules, tmp_path):
    (modules / "heavy.py").write_text(f"open({str(tmp_path / 'imports')!r}, 'a').write('x')\n")
    launcher = LocalLauncher(preload=["heavy"])
    with contextlib.closing(launcher):
        for code in ("0", "65"):
            request = build(code)
            assert ended(launcher, launcher.submit(request)).exit_code == int(code)
    assert (tmp_path / "imports").read_text() == "x"


def test_a_module_that_cannot_be_preloaded_is_named(build):
    launcher = LocalLauncher(preload=["no_such_module"])
    with contextlib.closing(launcher), pytest.raises(StageFailedError, match="no_such_module"):
        launcher.submit(build("0"))


def test_a_killed_fork_server_is_replaced_and_its_job_saves_and_stops(build):
    launcher = LocalLauncher()
    with contextlib.closing(launcher):
        request = build("preempt")
        handle = launcher.submit(request)
        seen(request)
        psutil.Process(handle.details["process_id"]).parent().kill()
        assert ended(launcher, handle).exit_code == 75
        assert ended(launcher, launcher.submit(build("0"))).exit_code == 0


@pytest.mark.parametrize("code", [0, 65])
def test_beside_a_gpu_driver_jobs_are_interpreters_of_their_own(build, monkeypatch, code):
    monkeypatch.setattr("m1.infra.launch.local.has_gpu_driver", lambda: True)
    launcher = LocalLauncher(preload=["no_such_module"])
    request = build(str(code))
    launcher.warm_up(request.environment)
    handle = launcher.submit(request)
    assert psutil.Process(handle.details["process_id"]).ppid() == os.getpid()
    assert ended(launcher, handle).exit_code == code


@pytest.mark.parametrize(("mode", "exit_code"), [("0", 0), ("65", 65)])
def test_workers_beside_a_gpu_driver_are_commands(build, monkeypatch, tmp_path, mode, exit_code):
    """CUDA does not survive a fork, so there the agent starts interpreters."""
    request = build(mode)
    request.work_dir.mkdir()
    script = (
        "import sys, pathlib, os\n"
        "from m1.infra.launch import agent\n"
        "agent.GPU_DRIVERS = (pathlib.Path('/'),)\n"
        "sys.exit(agent.run_agent(sys.argv[1], sys.argv[2:], processes=1,"
        " supervisor=os.getppid(), grace_seconds=1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, request.module, *request.arguments],
        env={**os.environ, **request.environment},
        check=False,
    )
    assert done.returncode == exit_code
    assert seen(request)["name"] == "__main__"
    assert agent.GPU_DRIVERS[0] != Path("/")

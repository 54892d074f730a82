"""`m1 run` with fake jobs is a real Prefect flow run, survives Ctrl-C and kill -9, and resumes."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "tests" / "fakes" / "m1_with_fake_jobs.py")]
RUN = ["run", "--preset", "toy", "--run", "r1", "--set", "run.order=[curate, pretrain, sft]"]


@pytest.fixture
def environment(tmp_path):
    return {
        **os.environ,
        "M1_HOME": str(tmp_path / "home"),
        "M1_STORE": str(tmp_path / "store"),
        "PYTHONPATH": str(ROOT / "tests" / "fakes"),
        "OMP_NUM_THREADS": "1",
    }


def m1(environment, *arguments, script=None):
    environment = {**environment, "M1_FAKE": json.dumps(script or {})}
    return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True)


def states(environment):
    done = m1(environment, "status", "r1", "--json")
    return {stage["name"]: stage["state"] for stage in json.loads(done.stdout)["stages"]}


def rows(environment, query):
    path = Path(environment["M1_HOME"]) / "prefect" / "prefect.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        answer = database.execute(query).fetchall()
    database.close()
    return answer


def start_slow_run(environment, tmp_path):
    script = {"pretrain": {"endings": ["slow", "ok"]}}
    process = subprocess.Popen(
        [*COMMAND, *RUN],
        env={**environment, "M1_FAKE": json.dumps(script)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    progress = tmp_path / "store" / "runs" / "r1" / "pretrain" / "progress.json"
    deadline = time.monotonic() + 120
    while not progress.exists() or json.loads(progress.read_bytes())["step"] < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def test_a_run_is_a_flow_run_in_the_database_of_this_machine(environment):
    done = m1(environment, *RUN)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("run r1")
    flow_runs = "SELECT f.name, r.state_type FROM flow_run r JOIN flow f ON f.id = r.flow_id"
    assert rows(environment, flow_runs) == [("pipeline", "COMPLETED")]
    tasks = rows(environment, "SELECT name, state_type FROM task_run ORDER BY start_time")
    assert tasks == [(name, "COMPLETED") for name in ("curate", "pretrain", "sft")]
    assert set(states(environment).values()) == {"committed"}


def test_ctrl_c_saves_and_resume_goes_on_without_the_prefect_database(environment, tmp_path):
    process = start_slow_run(environment, tmp_path)

    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]

    assert process.returncode == 130, output
    assert "m1 resume r1" in output
    assert states(environment)["pretrain"] == "preempted"
    for path in (tmp_path / "home" / "prefect").glob("prefect.db*"):
        path.unlink()
    done = m1(environment, "resume", "r1", script={"pretrain": {"endings": ["slow", "ok"]}})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "curate: committed before" in done.stdout
    assert set(states(environment).values()) == {"committed"}


def test_kill_nine_of_the_flow_loses_nothing(environment, tmp_path):
    process = start_slow_run(environment, tmp_path)

    process.kill()
    process.communicate()
    done = m1(environment, "resume", "r1", script={"pretrain": {"endings": ["slow", "ok"]}})

    assert done.returncode == 0, done.stdout + done.stderr
    assert set(states(environment).values()) == {"committed"}
    commit = json.loads((tmp_path / "store/runs/r1/pretrain/commit.json").read_bytes())
    assert commit["metrics"]["resumed_from"] >= 2

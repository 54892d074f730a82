"""The stage run with a fake job below the real local launcher: every ending, every promise."""

import os
import signal
import threading
import time

import pytest

from m1.flows.attempt import job_request, new_attempt
from m1.flows.effects import InterruptedRunError
from m1.flows.stage_plan import plan_stage
from m1.flows.stage_run import run_stage
from m1.infra.errors import BadInputError, LeaseError, StageFailedError, UsageError
from m1.infra.lease import Lease, current_holder
from m1.infra.manifest import load_commit, verify_objects
from m1.infra.names import attempts_prefix, lease_key

pytestmark = pytest.mark.slow


def attempts(store, stage):
    prefix = attempts_prefix("r1", stage)
    return {s.key[len(prefix) :].split("/")[0] for s in store.list(prefix)}


def test_a_good_job_is_committed_and_then_skipped(effects, record, store):
    outside = effects()

    commit = run_stage(outside, record=record, stage="curate")
    again = run_stage(outside, record=record, stage="curate")

    assert load_commit(store, "r1", "curate") == commit == again
    assert verify_objects(store, commit, full=True) == []
    assert outside.reporter.reused == ["curate"]
    assert outside.reporter.steps
    assert len(attempts(store, "curate")) == 1
    assert not list((outside.work_root / "r1" / "curate").iterdir())


def test_a_stage_without_parallel_work_is_one_process_whatever_the_layout(effects, record, store):
    """Two ranks would write the same files at the same time."""
    assert record.preset.layout.processes_per_node == 2
    outside, asked = effects(), {}
    for stage in ("curate", "pretrain"):
        plan = plan_stage(store, record, stage)
        lease = Lease.acquire(
            store, lease_key("r1", stage), holder=current_holder("test"), clock=outside.clock,
            term_seconds=60.0,
        )  # fmt: skip
        attempt = new_attempt(outside, plan, lease, from_start=False)
        asked[stage] = job_request(outside, attempt).processes
        if stage == "curate":
            lease.release()
            run_stage(outside, record=record, stage=stage)

    assert asked == {"curate": 1, "pretrain": 2}


def test_a_missing_parent_is_named_and_nothing_is_launched(effects, record, store):
    with pytest.raises(UsageError, match="pretrain needs curate"):
        run_stage(effects(), record=record, stage="pretrain")

    assert attempts(store, "pretrain") == set()


@pytest.mark.usefixtures("direct")
def test_the_end_of_the_log_is_shown_without_secrets_and_the_log_is_kept(effects, record, store):
    outside = effects(curate=["bad-input"])

    with pytest.raises(BadInputError, match="reason of the end") as caught:
        run_stage(outside, record=record, stage="curate")

    (name,) = attempts(store, "curate")
    log = store.get(f"{attempts_prefix('r1', 'curate')}{name}/logs/job.log").body.decode()
    assert "abcdefghijklmnop" not in str(caught.value) + log
    assert "m1 logs r1 curate" in str(caught.value)


@pytest.mark.usefixtures("direct")
def test_three_failures_without_progress_end_the_stage(effects, record, store):
    outside = effects(curate=["no-result", "wrong-size", "crash"])

    with pytest.raises(StageFailedError, match="3 times in a row"):
        run_stage(outside, record=record, stage="curate")

    assert load_commit(store, "r1", "curate") is None
    assert any("left no result" in note for note in outside.reporter.notes)
    assert any("outputs/weights.bin" in note for note in outside.reporter.notes)
    assert len(attempts(store, "curate")) == 3


@pytest.mark.usefixtures("direct")
def test_preemptions_and_failures_with_progress_are_not_counted(effects, record):
    endings = ["crash", "preempt", "checkpoint", "crash", "preempt-checkpoint", "crash", "ok"]
    endings[2] = "crash-checkpoint"
    outside = effects(curate=endings)

    commit = run_stage(outside, record=record, stage="curate")

    assert commit.fence == len(endings)
    assert commit.metrics["resumed_from"] == 2


def test_a_killed_job_goes_on_from_its_checkpoint(effects, record):
    outside = effects(curate=["slow", "ok"])
    killer = threading.Thread(target=kill_worker, args=(outside,))
    killer.start()

    commit = run_stage(outside, record=record, stage="curate")
    killer.join()

    assert commit.fence == 2
    assert commit.metrics["resumed_from"] >= 1


def kill_worker(outside):
    while len(outside.reporter.steps) < 2:
        time.sleep(0.05)
    (path,) = (outside.work_root / "r1" / "curate").glob("0001-*/worker.pid")
    os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.mark.usefixtures("direct")
def test_a_stop_request_saves_and_names_the_way_on(effects, record):
    outside = effects(curate=["slow", "ok"])

    def stop():
        while not outside.reporter.steps:
            time.sleep(0.05)
        outside.stop.count = 1

    threading.Thread(target=stop).start()
    with pytest.raises(InterruptedRunError, match="m1 resume r1") as caught:
        run_stage(outside, record=record, stage="curate")
    outside.stop.count = 0
    commit = run_stage(outside, record=record, stage="curate")

    assert caught.value.exit_code == 130
    assert commit.metrics["resumed_from"] >= 1


@pytest.mark.usefixtures("direct")
def test_two_runners_make_one_commit(effects, record, store):
    answers = []

    def runner():
        try:
            answers.append(run_stage(effects(), record=record, stage="curate").attempt)
        except LeaseError as error:
            answers.append(type(error).__name__)

    threads = [threading.Thread(target=runner) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    winner = load_commit(store, "r1", "curate").attempt
    assert sorted(answers) == sorted([winner, "LeaseHeldError"])

"""What the next runner finds when the last one ended between two calls of the store."""

import dataclasses

import pytest

from m1.flows import stage_run
from m1.flows.attempt import adopt_attempt, new_attempt
from m1.flows.stage_plan import plan_stage
from m1.flows.stage_run import run_stage
from m1.flows.status import stage_status
from m1.flows.sweep import plan_sweep, sweep_run
from m1.infra.clock import SYSTEM_CLOCK
from m1.infra.errors import BadInputError, StoreUnavailableError
from m1.infra.launch.protocol import JobHandle
from m1.infra.lease import Lease, current_holder
from m1.infra.manifest import load_commit, verify_objects
from m1.infra.names import attempt_prefix, attempts_prefix, lease_key
from m1.stages.contract import RESULT_NAME

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("direct")]


class LauncherWithALiveJob:
    """Finds every job alive, and remembers which it was told to end."""

    def __init__(self):
        self.cancelled = []

    def adopt(self, request):
        return JobHandle(launcher="live", name=request.name, details={})

    def cancel(self, handle, *, grace_seconds=20.0):
        self.cancelled.append((handle.name, grace_seconds))


def lease_of(store, **how):
    return Lease.acquire(store, lease_key("r1", "curate"), holder=current_holder(), **how)


@pytest.fixture
def sealed(effects, record, monkeypatch):
    """The attempt whose runner was cut off between the seal and the commit."""

    def away(*_):
        raise StoreUnavailableError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(stage_run, "write_commit", away)
        with pytest.raises(StoreUnavailableError):
            run_stage(effects(), record=record, stage="curate")


@pytest.mark.fault(1, 17, ending="recovered")
@pytest.mark.usefixtures("sealed")
def test_what_was_sealed_is_committed_by_whoever_comes_next(effects, record, store):
    commit = run_stage(effects(curate=["bad-input"]), record=record, stage="curate")

    assert commit.fence == 1
    assert load_commit(store, "r1", "curate") == commit
    assert verify_objects(store, commit, full=True) == []


@pytest.mark.fault(19, ending="contained")
@pytest.mark.usefixtures("sealed")
def test_a_sweep_leaves_what_is_sealed(effects, record, store):
    before = {summary.key for summary in store.list(attempts_prefix("r1", "curate"))}

    sweep_run(store, record, clock=SYSTEM_CLOCK, everything=True)

    after = {summary.key for summary in store.list(attempts_prefix("r1", "curate"))}
    assert after == before
    assert run_stage(effects(), record=record, stage="curate").fence == 1


@pytest.mark.fault(14, 20, ending="recovered")
@pytest.mark.usefixtures("sealed")
def test_what_was_sealed_and_then_damaged_is_done_anew(effects, record, store):
    (name,) = {s.key.split("/")[4] for s in store.list(attempts_prefix("r1", "curate"))}
    store.delete(attempt_prefix("r1", "curate", name) + RESULT_NAME)
    outside = effects()

    commit = run_stage(outside, record=record, stage="curate")

    assert commit.fence == 2
    assert f"curate: attempt {name} cannot be committed: left no result" in outside.reporter.notes


@pytest.mark.fault(19, ending="contained")
def test_a_live_job_from_before_a_sweep_is_ended_and_not_adopted(effects, record, store):
    outside = dataclasses.replace(effects(), launcher=LauncherWithALiveJob())
    plan = plan_stage(store, record, "curate")
    first = lease_of(store)
    attempt = new_attempt(outside, plan, first, from_start=False)
    first.release()

    second = lease_of(store)
    assert adopt_attempt(outside, plan, second)[0].name == attempt.name
    second.release()
    lease_of(store, sweeping=True).release()

    assert adopt_attempt(outside, plan, lease_of(store)) is None
    assert [grace for _, grace in outside.launcher.cancelled] == [0]


@pytest.mark.fault(19, ending="contained")
def test_a_sweep_leaves_a_held_stage_alone_and_says_what_it_did(effects, record, store):
    with pytest.raises(BadInputError):
        run_stage(effects(curate=["bad-input"]), record=record, stage="curate")
    held = lease_of(store)

    assert plan_sweep(store, record, now_seconds=2e9, everything=True).keys == ()
    assert sweep_run(store, record, clock=SYSTEM_CLOCK, everything=True).keys == ()
    held.release()

    planned = plan_sweep(store, record, now_seconds=4e9, everything=True)
    swept = sweep_run(store, record, clock=SYSTEM_CLOCK, everything=True)
    assert set(swept.keys) == set(planned.keys) != set()
    assert list(store.list(attempts_prefix("r1", "curate"))) == []
    assert "swept" in stage_status(store, "r1", "curate")["reason"]

"""One stage: lease -> plan -> launch -> watch -> verify -> commit. The only writer of commits.

Policy of the exit codes of a job:
    0     verified, then committed; without a valid result it is a failure
    65    bad input: never retried
    75    stopped after a checkpoint: started again, not counted
    else  failed: started again; three in a row without a new checkpoint end the stage
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from m1.flows.attempt import (
    Attempt,
    adopt_attempt,
    attempt_result,
    discard_scratch,
    last_lines,
    log_location,
    new_attempt,
    record_end,
    sealed_attempt,
    submit_attempt,
    upload_log,
)
from m1.flows.effects import InterruptedRunError, RunEffects
from m1.flows.run_record import RunRecord
from m1.flows.stage_plan import StagePlan, plan_stage
from m1.infra.errors import (
    EXIT_BAD_INPUT,
    EXIT_OK,
    EXIT_PREEMPTED,
    BadInputError,
    LeaseLostError,
    PreemptedError,
    StageFailedError,
    StoreError,
)
from m1.infra.launch.protocol import JobHandle, JobState
from m1.infra.lease import Lease, LeaseKeeper, current_holder
from m1.infra.manifest import Commit, write_commit
from m1.infra.names import lease_key, progress_key
from m1.stages.checkpoints import find_resume_point
from m1.stages.contract import Progress

FAILURES_IN_A_ROW = 3  # ours
PREEMPTIONS_IN_A_ROW = 20  # ours: without a single new checkpoint, something else is wrong
PROGRESS_SECONDS = 0.5


@dataclass(slots=True, kw_only=True)
class _Budget:
    """How often a stage may end badly without getting further."""

    step: int = -1
    failures: int = 0
    preemptions: int = 0

    def count(self, *, step: int, preempted: bool) -> None:
        if step > self.step:
            self.step, self.failures, self.preemptions = step, 0, 0
        if preempted:
            self.preemptions += 1
        else:
            self.failures += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """How one attempt ended: with a commit, or with an exit code and why."""

    commit: Commit | None
    exit_code: int
    reason: str


def run_stage(
    effects: RunEffects, *, record: RunRecord, stage: str, from_start: bool = False
) -> Commit:
    """The commit of `stage`, by running it unless it is there already.

    Args:
        effects: the outside world.
        record: what the run was started with.
        stage: one of the record's order.
        from_start: ignore checkpoints of earlier attempts.

    Raises:
        UsageError: a parent is missing or the stage is committed with another identity.
        BadInputError: the job cannot use its input.
        StageFailedError: it failed too often without getting further.
        InterruptedRunError: a signal stopped it; everything up to the last step is kept.
        LeaseError: somebody else works on this stage.
    """
    plan = plan_stage(effects.store, record, stage)
    if plan.commit is not None:
        effects.reporter.committed(stage, plan.commit, reused=True)
        return plan.commit
    budget = _Budget(step=_checkpoint_step(effects, plan))
    while True:
        ending = _attempt_under_lease(effects, plan, from_start=from_start)
        if ending.commit is not None:
            effects.reporter.committed(stage, ending.commit, reused=False)
            return ending.commit
        _decide(effects, plan, ending, budget)
        from_start = False


def _decide(effects: RunEffects, plan: StagePlan, ending: _Ending, budget: _Budget) -> None:
    """Return to try again, raise to give up."""
    name = f"{plan.stage} of run {plan.record.run}"
    if effects.stop.count:
        raise InterruptedRunError(f"{name} was stopped; go on with: m1 resume {plan.record.run}")
    if ending.exit_code == EXIT_BAD_INPUT:
        raise BadInputError(f"{name}: {ending.reason}")
    preempted = ending.exit_code == EXIT_PREEMPTED
    budget.count(step=_checkpoint_step(effects, plan), preempted=preempted)
    if budget.failures >= FAILURES_IN_A_ROW:
        raise StageFailedError(
            f"{name} failed {budget.failures} times in a row without a new checkpoint; "
            f"the last time: {ending.reason}"
        )
    if budget.preemptions >= PREEMPTIONS_IN_A_ROW:
        raise PreemptedError(f"{name} was preempted {budget.preemptions} times without a new step")
    verb = "was preempted" if preempted else "failed"
    effects.reporter.note(plan.stage, f"{verb}: {ending.reason.splitlines()[0]}; starting again")
    effects.clock.sleep(effects.poll_seconds * budget.failures)


def _checkpoint_step(effects: RunEffects, plan: StagePlan) -> int:
    found = find_resume_point(effects.store, plan.record.run, plan.stage, plan.fingerprint)
    return found.step if found else -1


# ---- one attempt -------------------------------------------------------------------------------


@contextmanager
def _held_lease(effects: RunEffects, plan: StagePlan) -> Iterator[LeaseKeeper]:
    lease = Lease.acquire(
        effects.store,
        lease_key(plan.record.run, plan.stage),
        holder=current_holder(f"run {plan.record.run}"),
        clock=effects.clock,
        term_seconds=effects.lease_term_seconds,
    )
    keeper = LeaseKeeper(lease, clock=effects.clock)
    try:
        with keeper:
            yield keeper
    finally:
        if not keeper.lost.is_set():
            _release(lease)


def _release(lease: Lease) -> None:
    try:
        lease.release()
    except (LeaseLostError, StoreError):
        return  # it expires by itself; the error that led here matters more


def _attempt_under_lease(effects: RunEffects, plan: StagePlan, *, from_start: bool) -> _Ending:
    with _held_lease(effects, plan) as keeper:
        again = plan_stage(effects.store, plan.record, plan.stage)
        if again.commit is not None:  # somebody else finished it while we waited for the lease
            return _Ending(commit=again.commit, exit_code=EXIT_OK, reason="committed by another")
        settled = _settle(effects, again, keeper.lease)
        if settled is not None:
            return _Ending(commit=settled, exit_code=EXIT_OK, reason="committed for another")
        attempt, handle = _start(effects, plan, keeper.lease, from_start=from_start)
        exit_code, detail = _watch(effects, attempt, handle, keeper)
        return _finish(effects, attempt, exit_code=exit_code, detail=detail, keeper=keeper)


def _settle(effects: RunEffects, plan: StagePlan, lease: Lease) -> Commit | None:
    """Commit what the last holder sealed: it may yet do so itself, and must find it done."""
    if not lease.sealed:
        return None
    commit, problems = attempt_result(effects, sealed_attempt(effects, plan, lease.sealed))
    if commit is None:
        effects.reporter.note(plan.stage, f"attempt {lease.sealed} cannot be committed: {problems}")
        return None
    return write_commit(effects.store, commit)


def _start(
    effects: RunEffects, plan: StagePlan, lease: Lease, *, from_start: bool
) -> tuple[Attempt, JobHandle]:
    adopted = adopt_attempt(effects, plan, lease)
    if adopted is not None:
        effects.reporter.note(plan.stage, f"found attempt {adopted[0].name} alive; watching it")
        return adopted
    attempt = new_attempt(effects, plan, lease, from_start=from_start)
    resume = attempt.spec.resume
    start = f"from step {resume.step}" if resume else "from the start"
    effects.reporter.note(plan.stage, f"attempt {attempt.name} {start}")
    return attempt, submit_attempt(effects, attempt)


def _watch(
    effects: RunEffects, attempt: Attempt, handle: JobHandle, keeper: LeaseKeeper
) -> tuple[int, str]:
    """Poll until the job ends; answers its exit code. A poll that fails means nothing."""
    seen, next_progress, stopper = b"", 0.0, _Stopper(effects, handle)
    while True:
        if keeper.lost.is_set():
            effects.launcher.cancel(handle, grace_seconds=0)
            raise LeaseLostError(f"the lease of {attempt.stage} was lost; its job was ended")
        status = effects.launcher.poll(handle)
        if effects.clock.monotonic_seconds() >= next_progress or status.state is JobState.ENDED:
            seen = _forward_progress(effects, attempt, seen)
            next_progress = effects.clock.monotonic_seconds() + PROGRESS_SECONDS
        if status.state is JobState.ENDED:
            return 1 if status.exit_code is None else status.exit_code, status.detail
        stopper.look(attempt.stage)
        effects.clock.sleep(effects.poll_seconds)


class _Stopper:
    """Turns the first signal into a graceful end of the job, the second into a quick one."""

    def __init__(self, effects: RunEffects, handle: JobHandle) -> None:
        self._effects = effects
        self._handle = handle
        self._done = 0

    def look(self, stage: str) -> None:
        count = min(self._effects.stop.count, 2)
        if count <= self._done:
            return
        self._done = count
        if count == 1:
            self._effects.reporter.note(stage, "stopping after a checkpoint (again: at once)")
        grace_seconds = self._effects.stop_grace_seconds if count == 1 else 0.0
        # In a thread of its own: a second signal must be heard while the first one waits.
        threading.Thread(target=self._cancel, args=(grace_seconds,), daemon=True).start()

    def _cancel(self, grace_seconds: float) -> None:
        self._effects.launcher.cancel(self._handle, grace_seconds=grace_seconds)


def _forward_progress(effects: RunEffects, attempt: Attempt, seen: bytes) -> bytes:
    try:
        body = effects.store.get(progress_key(attempt.run, attempt.stage)).body
        progress = Progress.from_bytes(body)
    except (StoreError, TypeError):
        return seen  # a heartbeat that cannot be read says nothing about the job
    if body != seen and progress.attempt == attempt.name:
        effects.reporter.progress(attempt.stage, progress)
    return body


def _finish(
    effects: RunEffects, attempt: Attempt, *, exit_code: int, detail: str, keeper: LeaseKeeper
) -> _Ending:
    upload_log(effects, attempt)
    reason = detail
    if exit_code == EXIT_OK:
        commit, problems = attempt_result(effects, attempt)
        if commit is not None:
            keeper.lease.seal(attempt.name)
            commit = write_commit(effects.store, commit)
            discard_scratch(attempt, keep_log=False)
            return _Ending(commit=commit, exit_code=EXIT_OK, reason="")
        exit_code, reason = 1, f"the job ended with 0 but {problems}"
    reason = _explained(effects, attempt, exit_code, reason)
    record_end(effects, attempt, exit_code=exit_code, reason=reason)
    discard_scratch(attempt, keep_log=True)
    return _Ending(commit=None, exit_code=exit_code, reason=reason)


def _explained(effects: RunEffects, attempt: Attempt, exit_code: int, reason: str) -> str:
    if exit_code == EXIT_PREEMPTED:
        return "stopped after a checkpoint"
    first = reason or f"the job ended with exit code {exit_code}"
    return f"{first}\n{last_lines(attempt)}\nwhole log: {log_location(effects, attempt)}"

"""What of a run may be deleted: what no commit names and no resume needs.

A committed stage can never be committed again, so all else in it goes. An uncommitted one is swept
under its lease, which says so (`swept`) to whoever comes next: then even a sweep that was stopped
between looking and deleting takes nothing that anybody will still use.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from m1.flows.run_record import RunRecord
from m1.flows.status import is_held
from m1.infra.canonical_json import parse_json
from m1.infra.clock import Clock
from m1.infra.errors import CorruptObjectError, LeaseHeldError, LeaseLostError, NotFoundError
from m1.infra.lease import Lease, LeaseKeeper, current_holder
from m1.infra.manifest import Commit, load_commit
from m1.infra.names import attempt_prefix, attempts_prefix, lease_key
from m1.infra.store.protocol import ObjectSummary, Store
from m1.stages.checkpoints import RECORD_NAME, CheckpointRecord
from m1.stages.contract import CHECKPOINTS_PREFIX, RESULT_NAME

YOUNG_SECONDS = 3600.0  # ours: an attempt on another machine may be between lease and first write


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Keys to delete and what they take."""

    keys: tuple[str, ...]
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"deleted": list(self.keys), "bytes": self.size_bytes}


def plan_sweep(store: Store, record: RunRecord, *, now_seconds: float, everything: bool) -> Sweep:
    """What a sweep would delete now; a stage somebody works on is left alone. Writes nothing.

    Args:
        store: where.
        record: which run.
        now_seconds: unix time.
        everything: also attempts younger than an hour.
    """
    before = now_seconds if everything else now_seconds - YOUNG_SECONDS
    stages = [s for s in record.preset.order if not _is_leased(store, record.run, s)]
    return _sweep([s for stage in stages for s in _doomed(store, record.run, stage, before, "")])


def _is_leased(store: Store, run: str, stage: str) -> bool:
    try:
        lease: Any = parse_json(store.get(lease_key(run, stage)).body)
    except NotFoundError:
        return False
    return is_held(lease)


def sweep_run(store: Store, record: RunRecord, *, clock: Clock, everything: bool) -> Sweep:
    """Delete what nobody needs; a stage somebody works on is left alone.

    Raises:
        LeaseLostError: this process stood still for so long that another took over.
    """
    before = clock.wall_seconds() - (0.0 if everything else YOUNG_SECONDS)
    deleted: list[ObjectSummary] = []
    for stage in record.preset.order:
        if not _doomed(store, record.run, stage, before, ""):
            continue
        if load_commit(store, record.run, stage) is None:
            deleted += _sweep_leased(store, record.run, stage, clock=clock, before_seconds=before)
        else:  # looked at anew: what is committed now may not have been before
            deleted += _delete(store, _doomed(store, record.run, stage, before, ""))
    return _sweep(deleted)


def _sweep_leased(
    store: Store, run: str, stage: str, *, clock: Clock, before_seconds: float
) -> list[ObjectSummary]:
    holder = current_holder(f"gc of {run}")
    try:
        lease = Lease.acquire(
            store, lease_key(run, stage), holder=holder, clock=clock, sweeping=True
        )
    except LeaseHeldError:
        return []
    with LeaseKeeper(lease, clock=clock) as keeper:
        doomed = _doomed(store, run, stage, before_seconds, lease.sealed)
        deleted = _delete(store, doomed, keeper)
    lease.release()
    return deleted


def _delete(
    store: Store, doomed: list[ObjectSummary], keeper: LeaseKeeper | None = None
) -> list[ObjectSummary]:
    # Records first: a checkpoint that is half deleted must not count as one.
    ordered = sorted(doomed, key=lambda summary: not summary.key.endswith(RECORD_NAME))
    for summary in ordered:
        if keeper is not None and keeper.lost.is_set():
            raise LeaseLostError(f"{keeper.lease.key}: the sweep was taken over")
        store.delete(summary.key)
    return ordered


def _sweep(summaries: list[ObjectSummary]) -> Sweep:
    return Sweep(
        keys=tuple(summary.key for summary in summaries),
        size_bytes=sum(summary.size_bytes for summary in summaries),
    )


def _doomed(
    store: Store, run: str, stage: str, before_seconds: float, sealed: str
) -> list[ObjectSummary]:
    prefix = attempts_prefix(run, stage)
    attempts: dict[str, list[ObjectSummary]] = defaultdict(list)
    for summary in store.list(prefix):
        attempts[summary.key.removeprefix(prefix).split("/", 1)[0]].append(summary)
    commit = load_commit(store, run, stage)  # after the list: it names nothing younger
    kept = _committed_keys(prefix, commit) if commit else set()
    spared = () if commit else tuple(_resumable(store, attempts, run, stage))
    if sealed and not commit:
        spared = (*spared, attempt_prefix(run, stage, sealed))
    return [
        summary
        for objects in attempts.values()
        if max(summary.modified_at for summary in objects) <= before_seconds
        for summary in objects
        if summary.key not in kept and not summary.key.startswith(spared)
    ]


def _committed_keys(prefix: str, commit: Commit) -> set[str]:
    """What the commit names, and the small records beside it."""
    own = f"{prefix}{commit.attempt}/"
    named = {own + entry.key for entry in commit.objects}
    return named | {own + RESULT_NAME, own + "logs/job.log"}


def _resumable(
    store: Store, attempts: dict[str, list[ObjectSummary]], run: str, stage: str
) -> Iterator[str]:
    """Prefixes of the newest whole checkpoint of every fingerprint: resumes start there."""
    sizes = {s.key: s.size_bytes for objects in attempts.values() for s in objects}
    seen: set[str] = set()
    for _, prefix in sorted(_checkpoints(attempts, run, stage), reverse=True):
        try:
            record = CheckpointRecord.from_bytes(store.get(prefix + RECORD_NAME).body)
        except (NotFoundError, CorruptObjectError):
            continue
        whole = all(sizes.get(prefix + entry.key) == entry.size_bytes for entry in record.objects)
        if whole and record.fingerprint not in seen:
            seen.add(record.fingerprint)
            yield prefix


def _checkpoints(
    attempts: dict[str, list[ObjectSummary]], run: str, stage: str
) -> Iterator[tuple[str, str]]:
    for attempt, objects in attempts.items():
        below = attempt_prefix(run, stage, attempt) + CHECKPOINTS_PREFIX
        for summary in objects:
            if summary.key.startswith(below) and summary.key.endswith(f"/{RECORD_NAME}"):
                step = summary.key.removeprefix(below).split("/", 1)[0]
                yield (f"{step}/{attempt}", f"{below}{step}/")

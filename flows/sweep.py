"""What of a run may be deleted: what no commit names and no resume needs. Deletes nothing."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from m1.flows.run_record import RunRecord
from m1.flows.status import is_held
from m1.infra.canonical_json import parse_json
from m1.infra.errors import NotFoundError
from m1.infra.manifest import Commit, load_commit
from m1.infra.names import attempts_prefix, lease_key
from m1.infra.store.protocol import ObjectSummary, Store
from m1.stages.checkpoints import RECORD_NAME
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
    """Plan what to delete; a stage somebody works on is left alone.

    Args:
        store: where.
        record: which run.
        now_seconds: unix time.
        everything: also attempts younger than an hour.
    """
    before = now_seconds if everything else now_seconds - YOUNG_SECONDS
    doomed: list[ObjectSummary] = []
    for stage in record.preset.order:
        if not _is_leased(store, record.run, stage):
            doomed += _doomed(store, record.run, stage, before_seconds=before)
    return Sweep(
        # Records first: a checkpoint that is half deleted must not count as one.
        keys=tuple(
            summary.key for summary in sorted(doomed, key=lambda s: not s.key.endswith(RECORD_NAME))
        ),
        size_bytes=sum(summary.size_bytes for summary in doomed),
    )


def _is_leased(store: Store, run: str, stage: str) -> bool:
    try:
        lease: Any = parse_json(store.get(lease_key(run, stage)).body)
    except NotFoundError:
        return False
    return is_held(lease)


def _doomed(store: Store, run: str, stage: str, *, before_seconds: float) -> list[ObjectSummary]:
    prefix = attempts_prefix(run, stage)
    attempts: dict[str, list[ObjectSummary]] = defaultdict(list)
    for summary in store.list(prefix):
        attempts[summary.key.removeprefix(prefix).split("/", 1)[0]].append(summary)
    commit = load_commit(store, run, stage)
    kept = _committed_keys(prefix, commit) if commit else ()
    spared = "" if commit else _newest_checkpoint(prefix, attempts)
    return [
        summary
        for objects in attempts.values()
        if max(summary.modified_at for summary in objects) <= before_seconds
        for summary in objects
        if summary.key not in kept and not (spared and summary.key.startswith(spared))
    ]


def _committed_keys(prefix: str, commit: Commit) -> set[str]:
    """What the commit names, and the small records beside it."""
    own = f"{prefix}{commit.attempt}/"
    named = {own + entry.key for entry in commit.objects}
    return named | {own + RESULT_NAME, own + "logs/job.log"}


def _newest_checkpoint(prefix: str, attempts: dict[str, list[ObjectSummary]]) -> str:
    """Prefix of the checkpoint that a resume would start from, or nothing."""
    return max(_checkpoints(prefix, attempts), default=("", ""))[1]


def _checkpoints(
    prefix: str, attempts: dict[str, list[ObjectSummary]]
) -> Iterable[tuple[str, str]]:
    for attempt, objects in attempts.items():
        below = f"{prefix}{attempt}/{CHECKPOINTS_PREFIX}"
        for summary in objects:
            if summary.key.startswith(below) and summary.key.endswith(f"/{RECORD_NAME}"):
                step = summary.key.removeprefix(below).split("/", 1)[0]
                yield (f"{step}/{attempt}", f"{below}{step}/")

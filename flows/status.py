"""The state of a run, read from the store alone. Imports neither torch nor Prefect."""

import time
from collections.abc import Mapping
from typing import Any

from m1.flows.run_record import RunRecord
from m1.infra.canonical_json import parse_json
from m1.infra.errors import EXIT_PREEMPTED, CorruptObjectError, NotFoundError
from m1.infra.lease import current_holder, process_start
from m1.infra.manifest import Commit, load_commit
from m1.infra.names import attempt_name, attempt_prefix, lease_key, progress_key
from m1.infra.store.protocol import Store
from m1.stages.contract import Progress

StageRow = dict[str, Any]


def run_status(store: Store, record: RunRecord) -> dict[str, Any]:
    """The answer of `m1 status RUN --json` (DESIGN.md section 6)."""
    return {
        "run": record.run,
        "preset": record.preset.name,
        "store": store.url,
        "stages": [stage_status(store, record.run, stage) for stage in record.preset.order],
    }


def stage_status(store: Store, run: str, stage: str) -> StageRow:
    """One stage: waiting, running, failed, preempted or committed; and how far."""
    lease = _json(store, lease_key(run, stage))
    attempts = int(lease["fence"]) if lease else 0
    commit = load_commit(store, run, stage)
    if commit is not None:
        return _committed(commit, max(attempts, 1))
    row = _row(stage, state="waiting", attempts=attempts)
    if lease is None:
        return row
    progress = _progress(store, run, stage)
    if progress is not None:
        row |= {"steps": progress.step, "tokens": progress.tokens}
        row["metrics"] = _live_metrics(progress)
    if is_held(lease):
        return row | {"state": "running", "phase": progress.phase if progress else "starting"}
    return row | _ended(store, run, stage, lease)


def is_held(lease: Mapping[str, Any]) -> bool:
    """Whether the holder of a lease record may still be at work."""
    if lease["released"]:
        return False
    holder, here = lease["holder"], current_holder()
    if (holder["host"], holder["boot_id"]) == (here.host, here.boot_id):
        return bool(process_start(holder["process_id"]) == holder["process_start"])
    return bool(lease["expires_at"] > time.time())


def _ended(store: Store, run: str, stage: str, lease: Mapping[str, Any]) -> StageRow:
    if lease.get("swept") == lease["fence"]:
        return {"state": "failed", "reason": "what earlier attempts left was swept; resume goes on"}
    prefix = attempt_prefix(run, stage, attempt_name(lease["fence"], lease["token"]))
    end = _json(store, f"{prefix}end.json")
    if end is None:
        return {"state": "failed", "reason": "its runner ended without a word; resume goes on"}
    state = "preempted" if end["exit_code"] == EXIT_PREEMPTED else "failed"
    return {"state": state, "reason": end["reason"]}


def _committed(commit: Commit, attempts: int) -> StageRow:
    row = _row(commit.stage, state="committed", attempts=attempts)
    return row | {
        "fingerprint": commit.fingerprint,
        "steps": commit.steps,
        "tokens": commit.tokens,
        "seconds": commit.seconds,
        "metrics": dict(commit.metrics),
        "size_bytes": sum(entry.size_bytes for entry in commit.objects),
        "committed_at": commit.committed_at,
    }


def _row(stage: str, *, state: str, attempts: int) -> StageRow:
    return {
        "name": stage,
        "state": state,
        "fingerprint": None,
        "attempts": attempts,
        "steps": 0,
        "tokens": 0,
        "seconds": 0.0,
        "metrics": {},
    }


def _live_metrics(progress: Progress) -> dict[str, Any]:
    values = {
        "loss_last": progress.loss,
        "reward_last": progress.reward,
        "tokens_per_second": progress.tokens_per_second or None,
        "eta_seconds": progress.eta_seconds,
    }
    return {name: value for name, value in values.items() if value is not None}


def _progress(store: Store, run: str, stage: str) -> Progress | None:
    try:
        return Progress.from_bytes(store.get(progress_key(run, stage)).body)
    except (NotFoundError, CorruptObjectError, TypeError):
        return None


def _json(store: Store, key: str) -> dict[str, Any] | None:
    try:
        value = parse_json(store.get(key).body)
    except NotFoundError:
        return None
    return value if isinstance(value, dict) else None

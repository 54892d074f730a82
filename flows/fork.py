"""A new run that keeps the commits of another one before a stage. Trains nothing.

ours: the objects are copied, verified on the way, so that each run stands alone: either may be
deleted or swept without the other noticing. The new commits name the new run and its parents, so
their digests and fingerprints are computed anew; the settings behind them are proven equal first.
"""

import dataclasses
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from m1.flows.accepted import unknown_name
from m1.flows.identity import stage_identity
from m1.flows.preset import Preset, apply_overrides
from m1.flows.run_record import RunRecord, find_record, installed_versions, load_record, save_record
from m1.infra.errors import CorruptObjectError, InvalidSettingError, UsageError
from m1.infra.manifest import Commit, load_commit, write_commit
from m1.infra.names import attempt_prefix
from m1.infra.store.protocol import Store
from m1.infra.transfer import download_entries, upload_tree
from m1.stages.registry import parents_of


def fork_run(
    store: Store, *, run: str, new: str, from_stage: str, overrides: tuple[str, ...]
) -> tuple[str, ...]:
    """Create run `new`; answers the stages it keeps.

    Raises:
        InvalidSettingError: unknown run or stage, or `new` exists already.
        UsageError: a stage that should be kept depends on what the overrides change.
    """
    origin = load_record(store, run)
    if find_record(store, new) is not None:
        raise InvalidSettingError(field="new run id", value=new, accepted="an id not yet in use")
    preset = apply_overrides(origin.preset, overrides)
    kept = _kept(store, origin, preset, from_stage)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = RunRecord(
        run=new,
        preset=preset,
        created_at=now,
        versions=installed_versions(),
        forked_from={"run": run, "from_stage": from_stage},
    )
    save_record(store, record)
    digests: dict[str, str] = {}
    for commit in kept:
        digests[commit.stage] = _copy(store, commit, record, digests).digest
    return tuple(digests)


def _kept(store: Store, origin: RunRecord, preset: Preset, from_stage: str) -> tuple[Commit, ...]:
    """Commits before `from_stage`, each proven to be what the new settings would make."""
    if from_stage not in preset.order:
        raise unknown_name("--from", from_stage, preset.order)
    commits: dict[str, Commit] = {}
    for stage in preset.order[: preset.order.index(from_stage)]:
        commit = load_commit(store, origin.run, stage)
        if commit is None:
            break  # what the origin has not finished, the new run does itself
        parents = {name: commits[name].digest for name in parents_of(stage, preset.order)}
        if stage_identity(preset, stage, parents).fingerprint() != commit.fingerprint:
            raise UsageError(
                f"{stage} cannot be kept: the changed settings touch it; use --from {stage}"
            )
        commits[stage] = commit
    return tuple(commits.values())


def _copy(store: Store, commit: Commit, record: RunRecord, digests: dict[str, str]) -> Commit:
    parents = {name: digests[name] for name in parents_of(commit.stage, record.preset.order)}
    copied = dataclasses.replace(
        commit,
        run=record.run,
        parents=parents,
        fingerprint=stage_identity(record.preset, commit.stage, parents).fingerprint(),
    )
    with tempfile.TemporaryDirectory(prefix="m1-fork-") as folder:
        source = attempt_prefix(commit.run, commit.stage, commit.attempt)
        target = attempt_prefix(record.run, commit.stage, commit.attempt)
        download_entries(store, source, commit.objects, Path(folder))
        if set(upload_tree(store, target, Path(folder))) != set(commit.objects):
            raise CorruptObjectError(f"the copy of {commit.stage} differs from {commit.run}")
    return write_commit(store, copied)

"""What must happen for one stage: skip, run, or refuse, and why. Writes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from m1.flows.identity import identity_settings, stage_identity
from m1.flows.run_record import RunRecord
from m1.infra.errors import UsageError
from m1.infra.manifest import Commit, load_commit
from m1.infra.store.protocol import Store
from m1.stages.contract import ParentRef
from m1.stages.registry import parents_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage with its identity; `commit` is set when it is done already."""

    record: RunRecord
    stage: str
    fingerprint: str
    parents: Mapping[str, ParentRef]
    commit: Commit | None


def missing_parents(store: Store, record: RunRecord, stage: str) -> tuple[str, ...]:
    """Parents of `stage` that have no commit."""
    parents = parents_of(stage, record.preset.order)
    return tuple(name for name in parents if load_commit(store, record.run, name) is None)


def plan_stage(store: Store, record: RunRecord, stage: str) -> StagePlan:
    """Plan one stage.

    Raises:
        UsageError: a parent is not committed, or the stage is committed with another identity.
    """
    parents: dict[str, ParentRef] = {}
    for name in parents_of(stage, record.preset.order):
        commit = load_commit(store, record.run, name)
        if commit is None:
            raise UsageError(
                f"{stage} needs {name}, which is not committed in run {record.run}; "
                f"run it first: m1 stage {name} --run {record.run}, or add --with-parents"
            )
        parents[name] = ParentRef(attempt=commit.attempt, digest=commit.digest)
    digests = {name: parent.digest for name, parent in parents.items()}
    fingerprint = stage_identity(record.preset, stage, digests).fingerprint()
    done = load_commit(store, record.run, stage)
    if done is not None and done.fingerprint != fingerprint:
        raise _other_identity(record, stage, done, digests)
    return StagePlan(
        record=record, stage=stage, fingerprint=fingerprint, parents=parents, commit=done
    )


def _other_identity(
    record: RunRecord, stage: str, done: Commit, digests: Mapping[str, str]
) -> UsageError:
    wanted = identity_settings(record.preset.settings[stage])
    reasons = [
        f"{stage}.{name}: {done.settings.get(name)!r} -> {value!r}"
        for name, value in wanted.items()
        if done.settings.get(name) != value
    ]
    if dict(done.parents) != dict(digests):
        reasons.append("a parent was committed anew")
    why = "; ".join(reasons) or "the stage's code version, its recipe, the model or the seed"
    return UsageError(
        f"{stage} of run {record.run} is committed with another identity ({why}); "
        f"fork: m1 fork {record.run} {record.run}-2 --from {stage}"
    )

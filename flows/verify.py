"""Whether everything a run committed is still what was committed. Repairs nothing."""

from dataclasses import dataclass
from typing import Any

from m1.flows.identity import stage_identity
from m1.flows.run_record import RunRecord
from m1.infra.errors import CorruptObjectError
from m1.infra.manifest import Commit, load_commit, verify_objects
from m1.infra.store.protocol import Store
from m1.stages.registry import parents_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was looked at, and what is wrong with it."""

    run: str
    stages: tuple[str, ...]
    objects: int
    size_bytes: int
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "stages": list(self.stages),
            "objects": self.objects,
            "bytes": self.size_bytes,
            "problems": list(self.problems),
        }


def verify_run(store: Store, record: RunRecord) -> Verification:
    """Re-hash every committed object and re-compute every fingerprint of a run."""
    commits: dict[str, Commit] = {}
    problems: list[str] = []
    for stage in record.preset.order:
        try:
            commit = load_commit(store, record.run, stage)
        except CorruptObjectError as error:
            problems.append(f"{stage}: commit.json: {error}")
            continue
        if commit is not None:
            commits[stage] = commit
            problems += [f"{stage}: {text}" for text in _problems(store, record, commits, stage)]
    return Verification(
        run=record.run,
        stages=tuple(commits),
        objects=sum(len(commit.objects) for commit in commits.values()),
        size_bytes=sum(entry.size_bytes for c in commits.values() for entry in c.objects),
        problems=tuple(problems),
    )


def _problems(store: Store, record: RunRecord, commits: dict[str, Commit], stage: str) -> list[str]:
    commit = commits[stage]
    problems = verify_objects(store, commit, full=True)
    parents = {
        name: commits[name].digest
        for name in parents_of(stage, record.preset.order)
        if name in commits
    }
    if dict(commit.parents) != parents:
        problems.append("its parents' commits are not those it was made from")
    elif stage_identity(record.preset, stage, parents).fingerprint() != commit.fingerprint:
        problems.append("its fingerprint does not follow from run.json and its parents")
    return problems

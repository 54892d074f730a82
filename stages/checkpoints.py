"""Checkpoints of a stage in the store: where they are, which one to resume from. No torch.

A checkpoint exists when its `checkpoint.json` exists: it is written last and names every file
with size and digest. Files without it are leftovers of an interrupted save.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from m1.infra.canonical_json import canonical_json, parse_json
from m1.infra.errors import CorruptObjectError, NotFoundError
from m1.infra.manifest import ObjectEntry
from m1.infra.names import attempts_prefix
from m1.infra.store.protocol import Store
from m1.stages.contract import CHECKPOINTS_PREFIX, ResumePoint

RECORD_NAME = "checkpoint.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """What `checkpoint.json` says; object keys are relative to the checkpoint's own prefix."""

    fingerprint: str
    step: int
    tokens: int
    seconds: float  # training time up to here, over all attempts
    objects: tuple[ObjectEntry, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self)

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            CorruptObjectError: not a checkpoint record.
        """
        fields: Any = parse_json(body)
        try:
            fields["objects"] = tuple(ObjectEntry(**entry) for entry in fields["objects"])
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise CorruptObjectError(f"not a checkpoint record: {error}") from error


def checkpoint_prefix(run: str, stage: str, attempt: str, step: int) -> str:
    """Key prefix of one checkpoint."""
    return f"{attempts_prefix(run, stage)}{attempt}/{CHECKPOINTS_PREFIX}step-{step:08d}/"


def resume_points(store: Store, run: str, stage: str, fingerprint: str) -> Iterator[ResumePoint]:
    """Complete checkpoints of this fingerprint over all attempts, the newest step first.

    A record that is damaged, or dropped while we look, is passed over.
    """
    prefix = attempts_prefix(run, stage)
    found = []
    for summary in store.list(prefix):
        if summary.key.endswith("/" + RECORD_NAME):
            attempt = summary.key[len(prefix) :].split("/", 1)[0]
            point = _resume_point(store, summary.key, attempt, fingerprint)
            if point is not None:
                found.append(point)
    yield from sorted(found, key=lambda point: (point.step, point.attempt), reverse=True)


def _resume_point(store: Store, key: str, attempt: str, fingerprint: str) -> ResumePoint | None:
    try:
        body = store.get(key).body
        record = CheckpointRecord.from_bytes(body)
    except (NotFoundError, CorruptObjectError):
        return None
    if record.fingerprint != fingerprint:
        return None
    digest = hashlib.sha256(body).hexdigest()
    return ResumePoint(attempt=attempt, step=record.step, record_sha256=digest)


def find_resume_point(store: Store, run: str, stage: str, fingerprint: str) -> ResumePoint | None:
    """The checkpoint to go on from, or None."""
    return next(resume_points(store, run, stage, fingerprint), None)

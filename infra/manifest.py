"""The commit of a stage: what readers may see. Moves no files: see transfer.py."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m1.infra.canonical_json import canonical_json, parse_json, sha256_hex
from m1.infra.errors import (
    CorruptObjectError,
    InvalidSettingError,
    LeaseLostError,
    NotFoundError,
    PreconditionFailedError,
)
from m1.infra.names import attempt_prefix, commit_key, validate_key
from m1.infra.store.protocol import Store

SCHEMA_VERSION = 1
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEntry:
    """One committed object; `key` is relative to the attempt prefix."""

    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One verified result of one stage. `parents` maps stage to commit digest."""

    schema_version: int = SCHEMA_VERSION
    run: str
    stage: str
    fingerprint: str
    attempt: str
    fence: int
    parents: Mapping[str, str]
    objects: tuple[ObjectEntry, ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    versions: Mapping[str, Any]
    layout: Mapping[str, Any]
    steps: int
    tokens: int
    seconds: float
    committed_at: str

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self)

    @property
    def digest(self) -> str:
        """Sha256 of `to_bytes`."""
        return sha256_hex(self.to_bytes())

    @classmethod
    def from_bytes(cls, body: bytes) -> "Commit":
        """Parse strictly; raises CorruptObjectError."""
        value = parse_json(body)
        if not isinstance(value, dict):
            raise CorruptObjectError("a commit is a JSON object")
        version = value.get("schema_version")
        if version != SCHEMA_VERSION:
            raise CorruptObjectError(
                f"commit has schema version {version!r}; this program reads {SCHEMA_VERSION}"
            )
        _check_fields(value, cls)
        objects = tuple(_parse_entry(item) for item in value["objects"])
        return cls(**{**value, "objects": objects})


def load_commit(store: Store, run: str, stage: str) -> Commit | None:
    """The commit of a stage, or None when the stage is not done."""
    key = commit_key(run, stage)
    try:
        commit = Commit.from_bytes(store.get(key).body)
    except NotFoundError:
        return None
    if (commit.run, commit.stage) != (run, stage):
        raise CorruptObjectError(f"{key} is the commit of {commit.run}/{commit.stage}")
    return commit


def write_commit(store: Store, commit: Commit) -> Commit:
    """Make a stage done; raises LeaseLostError when another attempt was first."""
    try:
        store.put_if_absent(commit_key(commit.run, commit.stage), commit.to_bytes())
    except PreconditionFailedError as error:
        winner = load_commit(store, commit.run, commit.stage)
        if winner is None or winner.attempt != commit.attempt:
            name = winner.attempt if winner else "an attempt that vanished"
            raise LeaseLostError(
                f"{commit.run}/{commit.stage} was committed by {name}, not {commit.attempt}"
            ) from error
        return winner
    return commit


def verify_objects(store: Store, commit: Commit, *, full: bool) -> list[str]:
    """Problems of the committed objects, in words; empty means none."""
    prefix = attempt_prefix(commit.run, commit.stage, commit.attempt)
    sizes = {item.key: item.size_bytes for item in store.list(prefix)}
    problems: list[str] = []
    for entry in commit.objects:
        size_bytes = sizes.get(prefix + entry.key)
        if size_bytes is None:
            problems.append(f"{entry.key}: missing")
        elif size_bytes != entry.size_bytes:
            problems.append(f"{entry.key}: {size_bytes} bytes, not {entry.size_bytes}")
        elif full and _stored_sha256(store, prefix + entry.key, size_bytes) != entry.sha256:
            problems.append(f"{entry.key}: wrong sha256")
    return problems


def _stored_sha256(store: Store, key: str, size_bytes: int) -> str:
    digest = hashlib.sha256()
    for start_bytes in range(0, size_bytes, _CHUNK_BYTES):
        digest.update(store.get_range(key, start_bytes=start_bytes, length_bytes=_CHUNK_BYTES))
    return digest.hexdigest()


_TYPES: dict[str, type | tuple[type, ...]] = {
    "schema_version": int, "run": str, "stage": str, "fingerprint": str, "attempt": str,
    "fence": int, "parents": dict, "objects": list, "settings": dict, "metrics": dict,
    "versions": dict, "layout": dict, "steps": int, "tokens": int, "seconds": (int, float),
    "committed_at": str, "key": str, "size_bytes": int, "sha256": str,
}  # fmt: skip


def _check_fields(value: dict[str, Any], kind: type[Any]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    if set(value) != names:
        raise CorruptObjectError(f"{kind.__name__}: fields differ: {sorted(set(value) ^ names)}")
    for name in names:
        if not isinstance(value[name], _TYPES[name]) or isinstance(value[name], bool):
            raise CorruptObjectError(f"{kind.__name__}.{name} has the wrong type")


def _parse_entry(value: object) -> ObjectEntry:
    if not isinstance(value, dict):
        raise CorruptObjectError("an object entry is a JSON object")
    _check_fields(value, ObjectEntry)
    try:
        validate_key(value["key"])
    except InvalidSettingError as error:
        raise CorruptObjectError(str(error)) from error
    return ObjectEntry(**value)

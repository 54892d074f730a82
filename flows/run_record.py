"""`run.json`: what a run was started with. Knows no stage's state; that is in the commits."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from m1.flows.identity import first_stage_touched, identity_changes
from m1.flows.preset import Preset, apply_overrides, load_preset, resolve
from m1.infra.canonical_json import canonical_json, parse_json
from m1.infra.errors import (
    CorruptObjectError,
    InvalidSettingError,
    NotFoundError,
    PreconditionFailedError,
    SettingsChangedError,
)
from m1.infra.names import parse_run_id, run_record_key
from m1.infra.store.protocol import Store

SCHEMA_VERSION = 1
VERSIONED = ("m1-pipeline", "prefect", "torch", "megatron-core")
_RUN_KEY = re.compile(r"runs/([^/]+)/run\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The resolved configuration of one run."""

    run: str
    preset: Preset
    created_at: str
    versions: Mapping[str, str]
    forked_from: Mapping[str, str] | None = None

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                "schema_version": SCHEMA_VERSION,
                "run": self.run,
                "preset": self.preset.name,
                "created_at": self.created_at,
                "versions": dict(self.versions),
                "forked_from": dict(self.forked_from) if self.forked_from else None,
                "config": self.preset.to_document(),
            }
        )

    @classmethod
    def from_bytes(cls, body: bytes) -> "RunRecord":
        """Read what `to_bytes` wrote.

        Raises:
            CorruptObjectError: not a run record of this version.
        """
        fields: Any = parse_json(body)
        if not isinstance(fields, dict) or fields.get("schema_version") != SCHEMA_VERSION:
            raise CorruptObjectError(f"not a run record of version {SCHEMA_VERSION}")
        try:
            return cls(
                run=parse_run_id(fields["run"]),
                preset=resolve(fields["preset"], fields["config"]),
                created_at=fields["created_at"],
                versions=fields["versions"],
                forked_from=fields["forked_from"],
            )
        except (KeyError, TypeError) as error:
            raise CorruptObjectError(f"not a run record: {error}") from error


def installed_versions() -> dict[str, str]:
    """Versions of what this run was planned with; packages that are missing are left out."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def find_record(store: Store, run: str) -> RunRecord | None:
    """The record of `run`, or None when there is no such run."""
    try:
        return RunRecord.from_bytes(store.get(run_record_key(run)).body)
    except NotFoundError:
        return None


def load_record(store: Store, run: str) -> RunRecord:
    """The record of `run`.

    Raises:
        InvalidSettingError: there is no such run in the store.
    """
    record = find_record(store, run)
    if record is None:
        known = ", ".join(run_names(store)[-10:]) or "none yet"
        raise InvalidSettingError(
            field="run id", value=run, accepted=f"a run in {store.url} ({known})"
        )
    return record


def run_names(store: Store) -> list[str]:
    """Ids of all runs in the store, sorted."""
    matches = (_RUN_KEY.fullmatch(summary.key) for summary in store.list("runs/"))
    return sorted(match[1] for match in matches if match)


def requested_preset(
    stored: RunRecord | None, *, preset: str | None, overrides: tuple[str, ...]
) -> Preset:
    """What was asked for: a preset by name, else the stored settings, else `toy`."""
    if preset is None and stored is not None:
        return apply_overrides(stored.preset, overrides)
    return load_preset(preset or "toy", overrides)


def check_unchanged(stored: RunRecord, wanted: Preset) -> None:
    """Refuse settings that would change results of an existing run.

    Raises:
        SettingsChangedError: with the differences and the `m1 fork` line.
    """
    changes = identity_changes(stored.preset, wanted)
    if changes:
        first = first_stage_touched(changes, stored.preset.order)
        raise SettingsChangedError(run=stored.run, changes=changes, first_stage=first)


def save_record(store: Store, record: RunRecord) -> RunRecord:
    """Write the record of a new run, or update where an existing one runs.

    Raises:
        SettingsChangedError: the run exists with other settings.
    """
    key = run_record_key(record.run)
    try:
        store.put_if_absent(key, record.to_bytes())
    except PreconditionFailedError:
        stored = load_record(store, record.run)
        check_unchanged(stored, record.preset)
        if stored.preset != record.preset:
            record = dataclasses.replace(stored, preset=record.preset)
            store.put(key, record.to_bytes())
            return record
        return stored
    return record

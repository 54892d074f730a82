"""From parameters to a run that may start: everything is checked before anything is written."""

import dataclasses
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from m1.flows.accepted import unknown_name
from m1.flows.effects import (
    PRELOAD,
    WORKER_MODULE,
    Reporter,
    RunEffects,
    SilentReporter,
    StopRequests,
    job_environment,
)
from m1.flows.identity import recipe_digest
from m1.flows.parameters import PipelineParameters, RunParameters, StageParameters
from m1.flows.preset import Preset
from m1.flows.run_record import (
    RunRecord,
    check_unchanged,
    find_record,
    installed_versions,
    requested_preset,
    save_record,
)
from m1.flows.stage_plan import missing_parents
from m1.infra.errors import InvalidSettingError, UsageError
from m1.infra.launch.local import LocalLauncher
from m1.infra.manifest import load_commit
from m1.infra.settings import load_environment
from m1.infra.store.open_store import open_store
from m1.infra.store.protocol import Store
from m1.stages.registry import parents_of
from m1.stages.settings import CurateSettings

STOP_GRACE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the process that starts a flow adds: who is told, who stops it, which job it is."""

    reporter: Reporter = dataclasses.field(default_factory=SilentReporter)
    stop: StopRequests = dataclasses.field(default_factory=StopRequests)
    module: str = WORKER_MODULE
    environ: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)


#: Set by the command line; a worker of the dashboard runs with the default.
SURROUNDINGS: ContextVar[Surroundings | None] = ContextVar("m1_surroundings", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """A checked request: the record (perhaps not yet written), the stages, the outside world."""

    record: RunRecord
    stages: tuple[str, ...]
    effects: RunEffects
    from_start: frozenset[str]

    @property
    def is_committed(self) -> bool:
        """Whether every requested stage is committed already."""
        store, run = self.effects.store, self.record.run
        return all(load_commit(store, run, stage) is not None for stage in self.stages)

    def save(self) -> None:
        """Write the record, unless it is there."""
        save_record(self.effects.store, self.record)


def new_run_id(preset: str, *, seconds: float) -> str:
    """A run id that tells when it was started, such as `toy-20261123-153000` (UTC)."""
    return f"{preset}-{datetime.fromtimestamp(seconds, UTC):%Y%m%d-%H%M%S}"


def prepare(parameters: RunParameters) -> PreparedRun:
    """Check a request against the store without writing or launching anything.

    Raises:
        UsageError: a field, its value and what is accepted.
        StoreError: the store cannot be reached or does not accept writes.
    """
    surroundings = SURROUNDINGS.get() or Surroundings()
    environment = load_environment(surroundings.environ)
    draft = None
    if parameters.run is None:
        # Settings first: a mistake there needs no store to be found.
        draft = requested_preset(
            None, preset=parameters.preset, overrides=tuple(parameters.overrides)
        )
    store = open_store(parameters.store or environment.store_url, environment)
    stored = find_record(store, parameters.run) if parameters.run else None
    wanted = draft or requested_preset(
        stored, preset=parameters.preset, overrides=tuple(parameters.overrides)
    )
    record = _record(parameters, stored, wanted)
    _check_preset(record.preset)
    stages = _stages(parameters, record, store)
    forced = _forced(parameters, record)
    store.probe()
    effects = RunEffects(
        store=store,
        launcher=LocalLauncher(stop_grace_seconds=STOP_GRACE_SECONDS, preload=PRELOAD),
        work_root=environment.home / "work",
        reporter=surroundings.reporter,
        stop=surroundings.stop,
        environment=job_environment(surroundings.environ) | _python_path(surroundings.environ),
        module=surroundings.module,
        stop_grace_seconds=STOP_GRACE_SECONDS,
    )
    return PreparedRun(record=record, stages=stages, effects=effects, from_start=forced)


def _record(parameters: RunParameters, stored: RunRecord | None, wanted: Preset) -> RunRecord:
    if stored is not None:
        check_unchanged(stored, wanted)
        return dataclasses.replace(stored, preset=wanted)
    now = time.time()
    return RunRecord(
        run=parameters.run or new_run_id(wanted.name, seconds=now),
        preset=wanted,
        created_at=datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        versions=installed_versions(),
    )


def _check_preset(preset: Preset) -> None:
    """What can be known before a job starts: recipes, corpus, and whether the launcher fits."""
    for stage, settings in preset.settings.items():
        if isinstance(settings, CurateSettings):
            recipe_digest(settings)
            if settings.corpus is not None:
                _check_corpus(stage, settings.corpus)
    nodes = max(preset.layout_of(stage).nodes for stage in preset.order)
    if nodes != 1:
        raise InvalidSettingError(
            field="layout.nodes", value=nodes, accepted="1 with the local launcher"
        )


def _check_corpus(stage: str, corpus: str) -> None:
    folder = Path(corpus).expanduser()
    has_files = folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))
    if not has_files:
        raise InvalidSettingError(
            field=f"{stage}.corpus", value=corpus, accepted="a folder that holds documents"
        )


# ---- which stages --------------------------------------------------------------------------------


def _stages(parameters: RunParameters, record: RunRecord, store: Store) -> tuple[str, ...]:
    order = record.preset.order
    if isinstance(parameters, StageParameters):
        stage = _known("stage", parameters.stage, order)
        if parameters.with_parents:
            return (*_ancestors(stage, order), stage)
        _require_parents(store, record, stage)
        return (stage,)
    if not isinstance(parameters, PipelineParameters):
        return order
    first = _place("from_stage", parameters.from_stage, order, default=0)
    last = _place("until_stage", parameters.until_stage, order, default=len(order) - 1)
    if first > last:
        raise InvalidSettingError(
            field="from_stage", value=order[first], accepted=f"{order[last]} or a stage before it"
        )
    stages = order[first : last + 1]
    for stage in stages:
        _require_parents(store, record, stage, provided=stages)
    return stages


def _known(field: str, stage: str, order: tuple[str, ...]) -> str:
    if stage not in order:
        raise unknown_name(field, stage, order)
    return stage


def _place(field: str, stage: str | None, order: tuple[str, ...], *, default: int) -> int:
    return default if stage is None else order.index(_known(field, stage, order))


def _ancestors(stage: str, order: tuple[str, ...]) -> tuple[str, ...]:
    found: set[str] = set()
    waiting = list(parents_of(stage, order))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += parents_of(name, order)
    return tuple(name for name in order if name in found)


def _require_parents(
    store: Store, record: RunRecord, stage: str, *, provided: tuple[str, ...] = ()
) -> None:
    missing = [n for n in missing_parents(store, record, stage) if n not in provided]
    if missing:
        raise UsageError(
            f"{stage} needs {', '.join(missing)}, not committed in run {record.run}; "
            f"run first: m1 stage {missing[-1]} --run {record.run} --with-parents"
        )


def _forced(parameters: RunParameters, record: RunRecord) -> frozenset[str]:
    return frozenset(_known("force", name, record.preset.order) for name in parameters.force)


def _python_path(environ: Mapping[str, str]) -> dict[str, str]:
    return {"PYTHONPATH": environ["PYTHONPATH"]} if environ.get("PYTHONPATH") else {}

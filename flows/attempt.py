"""One attempt of a stage: its work folder, its job, its log and what it left. Decides nothing."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from m1.flows.effects import RunEffects
from m1.flows.stage_plan import StagePlan
from m1.infra.canonical_json import canonical_json
from m1.infra.errors import CorruptObjectError, NotFoundError, StoreError
from m1.infra.launch.protocol import JobHandle, JobRequest
from m1.infra.manifest import Commit, verify_objects
from m1.infra.names import attempt_name, attempt_prefix
from m1.infra.redact import redact
from m1.stages.checkpoints import find_resume_point
from m1.stages.contract import RESULT_NAME, ResumePoint, StageResult, StageSpec
from m1.stages.registry import kind_of

if TYPE_CHECKING:
    from m1.infra.lease import Lease

SPEC_NAME = "spec.json"
LOG_NAME = "job.log"
END_NAME = "end.json"
LOG_KEY = "logs/job.log"
SHOWN_LINES = 15
_TAIL_BYTES = 65_536
_TORCHRUN_REPORT = "failed (exitcode:"  # what torchrun says after the worker's own last words


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A spec and the folder on this machine where its job works."""

    spec: StageSpec
    work_dir: Path

    @property
    def run(self) -> str:
        """Run id."""
        return self.spec.run

    @property
    def stage(self) -> str:
        """Stage name."""
        return self.spec.stage

    @property
    def name(self) -> str:
        """Attempt name."""
        return self.spec.attempt

    @property
    def prefix(self) -> str:
        """Key prefix of its objects."""
        return attempt_prefix(self.run, self.stage, self.name)


def new_attempt(
    effects: RunEffects, plan: StagePlan, lease: "Lease", *, from_start: bool
) -> Attempt:
    """A fresh attempt with its spec written to a fresh work folder."""
    point = None if from_start else find_resume_point(
        effects.store, plan.record.run, plan.stage, plan.fingerprint
    )  # fmt: skip
    name = attempt_name(lease.fence, lease.token)
    attempt = _planned(effects, plan, name=name, fence=lease.fence, point=point)
    attempt.work_dir.mkdir(parents=True)
    (attempt.work_dir / SPEC_NAME).write_bytes(attempt.spec.to_bytes())
    return attempt


def sealed_attempt(effects: RunEffects, plan: StagePlan, name: str) -> Attempt:
    """An attempt of whoever held the lease before us, as this plan would have started it."""
    return _planned(effects, plan, name=name, fence=int(name.split("-", 1)[0]), point=None)


def _planned(
    effects: RunEffects, plan: StagePlan, *, name: str, fence: int, point: ResumePoint | None
) -> Attempt:
    preset, run = plan.record.preset, plan.record.run
    settings = {stage: preset.settings[stage].model_dump(mode="json") for stage in preset.order}
    spec = StageSpec(
        run=run,
        stage=plan.stage,
        fingerprint=plan.fingerprint,
        attempt=name,
        fence=fence,
        store_url=effects.store.url,
        seed=preset.seed,
        order=preset.order,
        settings=settings[plan.stage],
        all_settings=settings,
        model=preset.model.model_dump(mode="json"),
        layout=preset.layout_of(plan.stage).model_dump(mode="json"),
        parents=plan.parents,
        resume=point,
    )
    return Attempt(spec=spec, work_dir=effects.work_root / run / plan.stage / name)


def job_request(effects: RunEffects, attempt: Attempt) -> JobRequest:
    """The job of an attempt; its name depends on nothing but the attempt."""
    spec = attempt.spec
    alone = kind_of(spec.stage).single_process
    return JobRequest(
        name=f"{spec.run}-{spec.stage}-{spec.fingerprint[:8]}-a{spec.fence}",
        module=effects.module,
        arguments=(str(attempt.work_dir / SPEC_NAME),),
        processes=1 if alone else spec.layout["processes_per_node"],
        nodes=1 if alone else spec.layout["nodes"],
        environment=effects.environment,
        work_dir=attempt.work_dir,
    )


def submit_attempt(effects: RunEffects, attempt: Attempt) -> JobHandle:
    """Start the job of an attempt."""
    return effects.launcher.submit(job_request(effects, attempt))


def adopt_attempt(
    effects: RunEffects, plan: StagePlan, lease: "Lease"
) -> tuple[Attempt, JobHandle] | None:
    """A job of this stage that a runner left behind and that is still alive.

    It is watched to its end, never doubled: a job whose runner died is about to save and stop.
    One from before a sweep is ended: what it wrote may be gone.
    """
    for attempt in _left_behind(effects, plan):
        handle = effects.launcher.adopt(job_request(effects, attempt))
        if handle is None:
            continue
        if attempt.spec.fence >= lease.swept:
            return attempt, handle
        effects.launcher.cancel(handle, grace_seconds=0)
    return None


def _left_behind(effects: RunEffects, plan: StagePlan) -> Iterator[Attempt]:
    folder = effects.work_root / plan.record.run / plan.stage
    for path in sorted(folder.glob(f"*/{SPEC_NAME}"), reverse=True):
        try:
            spec = StageSpec.from_bytes(path.read_bytes())
        except (CorruptObjectError, TypeError, KeyError):
            continue
        if (spec.fingerprint, spec.store_url) == (plan.fingerprint, effects.store.url):
            yield Attempt(spec=spec, work_dir=path.parent)


def attempt_result(effects: RunEffects, attempt: Attempt) -> tuple[Commit | None, str]:
    """The commit that an ended attempt deserves, or None and why not."""
    spec = attempt.spec
    try:
        result = StageResult.from_bytes(effects.store.get(attempt.prefix + RESULT_NAME).body)
    except NotFoundError:
        return None, "left no result"
    except (CorruptObjectError, TypeError, KeyError) as error:
        return None, f"its result cannot be read: {error}"
    if (result.fingerprint, result.attempt, result.fence) != (
        spec.fingerprint, spec.attempt, spec.fence,
    ):  # fmt: skip
        return None, "its result belongs to another attempt"
    commit = Commit(
        run=spec.run,
        stage=spec.stage,
        fingerprint=spec.fingerprint,
        attempt=spec.attempt,
        fence=spec.fence,
        parents={name: parent.digest for name, parent in spec.parents.items()},
        objects=result.objects,
        settings=dict(spec.settings),
        metrics=dict(result.metrics),
        versions=dict(result.versions),
        layout=dict(spec.layout),
        steps=result.steps,
        tokens=result.tokens,
        seconds=result.seconds,
        committed_at=_timestamp(effects),
    )
    problems = verify_objects(effects.store, commit, full=False)
    return (None, "; ".join(problems)) if problems else (commit, "")


# ---- what is left for people ---------------------------------------------------------------------


def last_lines(attempt: Attempt, *, count: int = SHOWN_LINES) -> str:
    """The end of the job's log, with secrets taken out."""
    path = attempt.work_dir / LOG_NAME
    if not path.exists():
        return "(the job wrote no log)"
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        text = stream.read().decode("utf-8", "replace")
    lines = [line for line in redact(text).splitlines() if line.strip()]
    reports = [index for index, line in enumerate(lines) if _TORCHRUN_REPORT in line]
    lines = lines[: reports[0]] if reports and reports[0] else lines
    return "\n".join(f"  {line}" for line in lines[-count:]) or "(the job's log is empty)"


def log_location(effects: RunEffects, attempt: Attempt) -> str:
    """Where a person finds the whole log."""
    command = f"m1 logs {attempt.run} {attempt.stage}"
    return f"{effects.store.url}/{attempt.prefix}{LOG_KEY} ({command})"


def upload_log(effects: RunEffects, attempt: Attempt) -> None:
    """Keep the job's log, with secrets taken out; a store that is away loses only the log."""
    source = attempt.work_dir / LOG_NAME
    if not source.exists():
        return
    clean = attempt.work_dir / "job.clean.log"
    with source.open("r", encoding="utf-8", errors="replace") as lines, clean.open("w") as target:
        for line in lines:
            target.write(redact(line))
    clean.replace(source)  # nor does it stay on this machine as the job wrote it
    try:
        effects.store.upload_file(source, attempt.prefix + LOG_KEY)
    except StoreError as error:
        effects.reporter.note(attempt.stage, f"the log could not be stored: {error}")


def record_end(effects: RunEffects, attempt: Attempt, *, exit_code: int, reason: str) -> None:
    """Say in the store how an attempt without a commit ended, for `m1 status`."""
    body = {"exit_code": exit_code, "reason": reason, "ended_at": _timestamp(effects)}
    try:
        effects.store.put(attempt.prefix + END_NAME, canonical_json(body))
    except StoreError as error:
        effects.reporter.note(attempt.stage, f"the end could not be recorded: {error}")


def discard_scratch(attempt: Attempt, *, keep_log: bool) -> None:
    """Free the disk: everything, or everything but the log."""
    if keep_log:
        shutil.rmtree(attempt.work_dir / "scratch", ignore_errors=True)
        (attempt.work_dir / SPEC_NAME).unlink(missing_ok=True)
    else:
        shutil.rmtree(attempt.work_dir, ignore_errors=True)


def _timestamp(effects: RunEffects) -> str:
    return datetime.fromtimestamp(effects.clock.wall_seconds(), UTC).isoformat(timespec="seconds")

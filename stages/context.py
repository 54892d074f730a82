"""What a stage may do to the outside world while it runs: read parents, report, save, hand over.

One `StageContext` per rank. Rank 0 speaks to the store; the others wait at a barrier, so that a
file is there for all of them when a call returns (one node; per-node transfer is issue 9's).
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from m1.infra.errors import CorruptObjectError, NotFoundError, StoreError
from m1.infra.launch.stop_signals import EARLY
from m1.infra.manifest import Commit, ObjectEntry, load_commit
from m1.infra.names import attempt_prefix, progress_key
from m1.infra.store.protocol import Store
from m1.infra.transfer import download_entries, upload_tree
from m1.model.config import ModelConfig, ParallelLayout
from m1.stages.checkpoints import (
    RECORD_NAME,
    CheckpointRecord,
    checkpoint_prefix,
    resume_points,
)
from m1.stages.contract import OUTPUTS_PREFIX, Progress, ResumePoint, StageSpec

PROGRESS_INTERVAL_SECONDS = 0.5  # ours: fresh enough for a bar, cheap enough for S3
KEPT_CHECKPOINTS = 2  # ours: the newest, and one to fall back to if it is damaged


class StopRequest:
    """Set by SIGTERM or SIGINT: finish the step, save, exit 75."""

    def __init__(self) -> None:
        self.is_set = False

    def install(self) -> None:
        """Listen to the signals in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)
        self.is_set |= EARLY.count > 0  # asked while this process was still starting

    def _set(self, *_: object) -> None:
        self.is_set = True


def _only_alone() -> None:
    """Before process groups exist ranks cannot wait for one another: only one rank may pass."""
    assert os.environ.get("WORLD_SIZE", "1") == "1", "open the model before reading parents"


class StageContext:
    """One rank's view of the attempt it works for."""

    def __init__(self, spec: StageSpec, store: Store, *, scratch: Path, rank: int) -> None:
        self.spec = spec
        self.store = store
        self.scratch = scratch
        self.rank = rank
        self.model = ModelConfig.model_validate(dict(spec.model))
        self.layout = ParallelLayout.model_validate(dict(spec.layout))
        self.stop = StopRequest()
        self.barrier: Callable[[], None] = _only_alone
        self.started = time.monotonic()
        self.earlier_seconds = 0.0
        self.outputs = scratch / "outputs"
        self.outputs.mkdir(parents=True, exist_ok=True)
        self._last_progress = 0.0
        self._progress = Progress(stage=spec.stage, attempt=spec.attempt, phase="starting")

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks to the store."""
        return self.rank == 0

    @property
    def prefix(self) -> str:
        """Key prefix of this attempt."""
        return attempt_prefix(self.spec.run, self.spec.stage, self.spec.attempt)

    def seconds(self) -> float:
        """Time this stage has taken over all its attempts."""
        return self.earlier_seconds + time.monotonic() - self.started

    # ---- reading ---------------------------------------------------------------------------

    def parent_commit(self, stage: str) -> Commit:
        """The commit of a parent, checked against the digest this attempt was planned with.

        Raises:
            CorruptObjectError: the parent's commit is not the one the flow saw.
        """
        commit = load_commit(self.store, self.spec.run, stage)
        expected = self.spec.parents[stage].digest
        if commit is None or commit.digest != expected:
            raise CorruptObjectError(f"commit of {stage} is not {expected[:12]}")
        return commit

    def fetch(self, stage: str, part: str) -> Path:
        """Verified local copy of everything a parent committed below `outputs/<part>`."""
        target = self.scratch / "parents" / stage
        if self.is_main:
            commit = self.parent_commit(stage)
            wanted = f"{OUTPUTS_PREFIX}{part}"
            entries = tuple(e for e in commit.objects if e.key.startswith(wanted))
            source = attempt_prefix(self.spec.run, stage, commit.attempt)
            download_entries(self.store, source, entries, target)
        self.barrier()
        return target / OUTPUTS_PREFIX / part

    def weights_parent(self) -> str | None:
        """The parent whose weights this stage starts from."""
        names = [name for name in self.spec.parents if name != "curate"]
        return names[-1] if names else None

    # ---- reporting -------------------------------------------------------------------------

    def report(self, *, now: bool = False, **fields: Any) -> None:
        """Update `progress.json`; at most twice a second unless `now`."""
        if not self.is_main:
            return
        known = {name: getattr(self._progress, name) for name in Progress.__dataclass_fields__}
        known.update(fields, updated_at=time.time())
        self._progress = Progress(**known)
        elapsed = time.monotonic() - self._last_progress
        if now or "phase" in fields or elapsed >= PROGRESS_INTERVAL_SECONDS:
            self._last_progress = time.monotonic()
            self._put_progress()

    def _put_progress(self) -> None:
        key = progress_key(self.spec.run, self.spec.stage)
        try:
            self.store.put(key, self._progress.to_bytes())
        except StoreError:
            return  # a heartbeat that does not get through must never stop training

    def metric(self, **fields: Any) -> None:
        """Append one line to the metrics of this stage."""
        if self.is_main:
            with (self.outputs / "metrics.jsonl").open("a") as stream:
                stream.write(json.dumps(fields, sort_keys=True) + "\n")

    # ---- checkpoints -----------------------------------------------------------------------

    def checkpoint_directory(self, step: int) -> Path:
        """Where the job writes the checkpoint of `step` before it is uploaded."""
        return self.scratch / "checkpoints" / f"step-{step:08d}"

    def commit_checkpoint(self, step: int, tokens: int) -> None:
        """Upload the directory of `step`; its record is written last. Old ones are dropped."""
        directory = self.checkpoint_directory(step)
        self.barrier()
        if self.is_main:
            self._carry(self.outputs, directory / "carried")
            prefix = checkpoint_prefix(self.spec.run, self.spec.stage, self.spec.attempt, step)
            objects = upload_tree(self.store, prefix, directory)
            record = CheckpointRecord(
                fingerprint=self.spec.fingerprint,
                step=step,
                tokens=tokens,
                seconds=self.seconds(),
                objects=objects,
            )
            self.store.put_if_absent(prefix + RECORD_NAME, record.to_bytes())
            shutil.rmtree(directory)
            self._drop_old_checkpoints()
        self.barrier()

    def _drop_old_checkpoints(self) -> None:
        spec = self.spec
        own = [
            point
            for point in resume_points(self.store, spec.run, spec.stage, spec.fingerprint)
            if point.attempt == spec.attempt
        ]
        for point in own[KEPT_CHECKPOINTS:]:
            prefix = checkpoint_prefix(spec.run, spec.stage, point.attempt, point.step)
            self.store.delete(prefix + RECORD_NAME)  # first: a half-deleted one must not count
            for summary in list(self.store.list(prefix)):
                self.store.delete(summary.key)

    def resume(self) -> tuple[CheckpointRecord, Path] | None:
        """What this attempt goes on from, as `newest_checkpoint`; None when it starts afresh."""
        found = self.newest_checkpoint() if self.spec.resume is not None else None
        if found is not None:
            record, directory = found
            self.earlier_seconds = record.seconds
            if self.is_main:
                self._carry(directory / "carried", self.outputs)
            self.barrier()
        return found

    def newest_checkpoint(self) -> tuple[CheckpointRecord, Path] | None:
        """The newest checkpoint whose every byte is as recorded, as a local directory.

        A damaged checkpoint is passed over for the one before it.
        """
        target = self.scratch / "resume"
        if self.is_main:
            shutil.rmtree(target, ignore_errors=True)
            self._fetch_resume(target)
        self.barrier()
        body = (target / RECORD_NAME).read_bytes() if (target / RECORD_NAME).exists() else None
        return None if body is None else (CheckpointRecord.from_bytes(body), target)

    @staticmethod
    def _carry(source: Path, target: Path) -> None:
        """Copy the plain files of `source`: metrics and small state travel with checkpoints."""
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir() if source.exists() else ():
            if path.is_file():
                shutil.copyfile(path, target / path.name)

    def carried(self, name: str) -> Path | None:
        """A small state file that travelled with the checkpoint this attempt resumed from."""
        path = self.outputs / name
        return path if self.spec.resume is not None and path.exists() else None

    def _fetch_resume(self, target: Path) -> None:
        spec = self.spec
        for point in resume_points(self.store, spec.run, spec.stage, spec.fingerprint):
            try:
                body = self._fetch_point(point, target)
            except (CorruptObjectError, NotFoundError):
                shutil.rmtree(target, ignore_errors=True)
                continue
            (target / RECORD_NAME).write_bytes(body)
            return

    def _fetch_point(self, point: ResumePoint, target: Path) -> bytes:
        spec = self.spec
        prefix = checkpoint_prefix(spec.run, spec.stage, point.attempt, point.step)
        body = self.store.get(prefix + RECORD_NAME).body
        download_entries(self.store, prefix, CheckpointRecord.from_bytes(body).objects, target)
        return body

    # ---- handing over ----------------------------------------------------------------------

    def upload_outputs(self) -> tuple[ObjectEntry, ...]:
        """Put everything below `outputs/` in the store; entries relative to the attempt."""
        entries = upload_tree(self.store, self.prefix + OUTPUTS_PREFIX, self.outputs)
        return tuple(
            ObjectEntry(
                key=OUTPUTS_PREFIX + entry.key, size_bytes=entry.size_bytes, sha256=entry.sha256
            )
            for entry in entries
        )

    def write_output_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A small JSON file among the outputs."""
        if self.is_main:
            path = self.outputs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n")

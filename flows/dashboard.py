"""What the Prefect dashboard shows of a run: log lines, progress, a summary. Never the truth."""

import time
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from m1.flows.prepare import PreparedRun
from m1.flows.status import run_status
from m1.infra.manifest import Commit
from m1.stages.contract import Progress

UPDATE_SECONDS = 2.0  # ours: each update is a request and a row in the database
_UNREACHABLE = (httpx.HTTPError, PrefectException, OSError)
_COLUMNS = ("name", "state", "attempts", "steps", "tokens", "seconds")


class DashboardReporter:
    """One stage's log lines and progress bar; a dashboard that is away stops nothing."""

    def __init__(self, run: str, stage: str) -> None:
        self._key = f"{run}-{stage}"
        self._artifact: UUID | None = None
        self._next_update = 0.0
        self._logger = get_run_logger()

    def note(self, stage: str, text: str) -> None:
        """A log line of the task run."""
        self._logger.info("%s: %s", stage, text)

    def progress(self, stage: str, progress: Progress) -> None:
        """Move the bar, at most every two seconds."""
        now = time.monotonic()
        if not progress.steps or now < self._next_update:
            return
        self._next_update = now + UPDATE_SECONDS
        self._move(100.0 * min(1.0, progress.step / progress.steps), _in_words(progress))

    def committed(self, stage: str, commit: Commit, *, reused: bool) -> None:
        """The bar at its end, and the metrics of the stage."""
        self._move(100.0, "committed before" if reused else "committed")
        rows = [f"| {name} | {value} |" for name, value in sorted(commit.metrics.items())]
        table = "\n".join(["| metric | value |", "|---|---|", *rows])
        head = f"## {stage}\n{commit.steps} steps, {commit.tokens} tokens, {commit.seconds:.1f} s"
        _publish(create_markdown_artifact, markdown=f"{head}\n\n{table}", key=f"{self._key}-done")

    def _move(self, percent: float, description: str) -> None:
        if self._artifact is None:
            created = _publish(
                create_progress_artifact, progress=percent, key=self._key, description=description
            )
            self._artifact = created if isinstance(created, UUID) else None
        else:
            _publish(
                update_progress_artifact,
                artifact_id=self._artifact,
                progress=percent,
                description=description,
            )


def publish_summary(prepared: PreparedRun) -> None:
    """The table of all stages, as an artifact of the flow run."""
    status = run_status(prepared.effects.store, prepared.record)
    rows = [{name: row[name] for name in _COLUMNS} for row in status["stages"]]
    _publish(
        create_table_artifact,
        table=rows,
        key=f"{prepared.record.run}-summary",
        description=f"Run {prepared.record.run} in {prepared.effects.store.url}",
    )


def _in_words(progress: Progress) -> str:
    parts = [progress.phase, f"step {progress.step} of {progress.steps}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.reward is not None:
        parts.append(f"reward {progress.reward:.3f}")
    parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    return ", ".join(parts)


def _publish(create: Any, **fields: Any) -> object:
    try:
        return create(**fields)
    except _UNREACHABLE:
        return None  # the run goes on; `m1 status` reads the store

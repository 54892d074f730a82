"""What a person sees in the terminal: progress bars, plain lines, tables. Decides nothing."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from m1.flows.effects import Reporter
from m1.infra.manifest import Commit
from m1.stages.contract import Progress

PLAIN_SECONDS = 5.0  # ours: one line per stage and five seconds when there is no terminal
PLAIN_WIDTH = 150
_COLUMNS = (
    "stage", "state", "time", "steps", "tokens", "loss", "reward", "accuracy", "stored",
)  # fmt: skip


class ScreenReporter(Reporter, Protocol):
    """A reporter that owns a part of the screen while it is entered."""

    def __enter__(self) -> "ScreenReporter":
        """Take the screen."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give it back."""
        ...


def say(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """One message on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def screen_reporter(stages: Sequence[str]) -> ScreenReporter:
    """Bars on a terminal, lines elsewhere."""
    return BarReporter(stages) if sys.stdout.isatty() else LineReporter()


class LineReporter:
    """Plain lines, for files and pipes."""

    def __init__(self) -> None:
        self._next_line = 0.0

    def __enter__(self) -> "LineReporter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def note(self, stage: str, text: str) -> None:
        """One line."""
        say(f"{stage}: {text}")

    def progress(self, stage: str, progress: Progress) -> None:
        """One line now and then."""
        now = time.monotonic()
        if now >= self._next_line and progress.steps:
            self._next_line = now + PLAIN_SECONDS
            say(f"{stage}: step {progress.step}/{progress.steps}  {progress_words(progress)}")

    def committed(self, stage: str, commit: Commit, *, reused: bool) -> None:
        """One line."""
        say(f"{stage}: {commit_words(commit, reused=reused)}")


class BarReporter:
    """One bar per stage with step, loss or reward, tokens per second and what is left."""

    def __init__(self, stages: Sequence[str]) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[words]}"),
        )
        width = max(len(stage) for stage in stages)
        self._rows = {
            stage: self._bars.add_task(stage.ljust(width), start=False, total=1, words="waiting")
            for stage in stages
        }

    def __enter__(self) -> "BarReporter":
        self._bars.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    def note(self, stage: str, text: str) -> None:
        """A line above the bars; the stage's clock starts."""
        from rich.markup import escape

        self._bars.start_task(self._rows[stage])
        self._bars.update(self._rows[stage], words="starting")
        self._bars.console.print(f"[dim]{stage}: {escape(text)}")

    def progress(self, stage: str, progress: Progress) -> None:
        """Move the bar."""
        words = progress_words(progress)
        total = max(progress.steps, 1)
        self._bars.update(self._rows[stage], completed=progress.step, total=total, words=words)

    def committed(self, stage: str, commit: Commit, *, reused: bool) -> None:
        """Fill the bar."""
        total = max(commit.steps, 1)
        words = commit_words(commit, reused=reused)
        self._bars.start_task(self._rows[stage])
        self._bars.update(self._rows[stage], completed=total, total=total, words=words)
        self._bars.stop_task(self._rows[stage])


# ---- words ---------------------------------------------------------------------------------------


def progress_words(progress: Progress) -> str:
    """Phase, loss or reward, speed and remaining time."""
    parts = [progress.phase]
    if progress.reward is not None:
        parts.append(f"reward {progress.reward:.3f}")
    elif progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return "  ".join(parts)


def commit_words(commit: Commit, *, reused: bool) -> str:
    """How a commit came to be, in a few words."""
    if reused:
        return f"committed before ({commit.committed_at}), skipped"
    return f"committed, {commit.steps} steps, {commit.tokens:,} tokens, {duration(commit.seconds)}"


def duration(seconds: float) -> str:
    """Such as `2:05` or `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size_words(size_bytes: float) -> str:
    """Such as `3.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024 or unit == "TiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"


# ---- tables --------------------------------------------------------------------------------------


def show_status(status: Mapping[str, Any]) -> None:
    """The table of a run's stages."""
    rows = [stage_cells(row) for row in status["stages"]]
    show_table(f"run {status['run']} ({status['preset']}) in {status['store']}", _COLUMNS, rows)
    for row in status["stages"]:
        if row.get("reason"):
            say(f"{row['name']}: {row['reason']}")


def stage_cells(row: Mapping[str, Any]) -> list[str]:
    """One stage as text cells, in the order of the table's columns."""
    metrics = row["metrics"]
    return [
        row["name"],
        row["state"] + (f" ({row['phase']})" if row.get("phase") else ""),
        duration(row["seconds"]) if row["seconds"] else "",
        str(row["steps"] or ""),
        f"{row['tokens']:,}" if row["tokens"] else "",
        _from_to(metrics, "loss_first", "loss_last"),
        _from_to(metrics, "reward_first", "reward_last"),
        _number(metrics.get("accuracy")),
        size_words(row["size_bytes"]) if row.get("size_bytes") else "",
    ]


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table that fits the terminal, or a wide one elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for name in columns:
        right = name in ("time", "steps", "tokens", "stored")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, file=sys.stdout).print(table)


def _from_to(metrics: Mapping[str, Any], first: str, last: str) -> str:
    ends = [_number(metrics.get(name)) for name in (first, last)]
    return " → ".join(end for end in ends if end)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else ""

"""One self-contained page about a run: plots, tables, settings, lineage. From commits only.

Every text is escaped and the plots are inline SVG: the page needs no network and runs no script.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from m1.flows.run_record import RunRecord
from m1.flows.screen import duration, size_words, stage_cells
from m1.flows.status import run_status
from m1.infra.errors import CorruptObjectError
from m1.infra.manifest import Commit, load_commit
from m1.infra.names import attempt_prefix
from m1.infra.redact import redact
from m1.infra.store.protocol import Store

METRICS_KEY = "outputs/metrics.jsonl"
_HEAD = ("stage", "state", "time", "steps", "tokens", "loss", "reward", "accuracy", "stored")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-size:13px}td,th{padding:.25rem .6rem;
border-bottom:1px solid #ddd;text-align:left}svg{max-width:100%;height:auto}
code,pre{font-size:12px}pre{background:#f6f6f6;padding:.6rem;overflow:auto}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#222}
td,th{border-color:#444}svg{background:#fff}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCurve:
    """What one stage measured, step by step, as its commit holds it."""

    stage: str
    lines: tuple[Mapping[str, Any], ...]

    def series(self, name: str, *, against: str) -> tuple[list[float], list[float]]:
        """The numbers of `name` and where they lie on `against`."""
        points = [
            (float(line[against]), float(line[name]))
            for line in self.lines
            if _is_number(line.get(name)) and _is_number(line.get(against))
        ]
        return [x for x, _ in points], [y for _, y in points]


def report_page(store: Store, record: RunRecord) -> str:
    """The whole page as HTML."""
    commits = [load_commit(store, record.run, stage) for stage in record.preset.order]
    done = [commit for commit in commits if commit is not None]
    curves = [stage_curve(store, commit) for commit in done]
    sections = [
        _section("Stages", _table(_HEAD, _status_rows(store, record))),
        _section("Loss against tokens, all stages", loss_plot(curves)),
        _section("Reward per step", reward_plot(curves)),
        _section("Accuracy before and after each stage", accuracy_plot(done)),
        _section("Metrics", _metrics_table(done)),
        _section("Lineage", _lineage_table(done)),
        _section("Settings", _pre(record.preset.to_document())),
    ]
    title = f"Run {record.run}"
    started = f"preset {record.preset.name}, started {record.created_at}, store {store.url}"
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{_text(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{_text(title)}</h1><p>{_text(started)}</p>"
        + "".join(sections)
        + "</body></html>\n"
    )


def stage_curve(store: Store, commit: Commit) -> StageCurve:
    """The metric lines of a commit; none when the stage measures nothing per step."""
    if all(entry.key != METRICS_KEY for entry in commit.objects):
        return StageCurve(stage=commit.stage, lines=())
    prefix = attempt_prefix(commit.run, commit.stage, commit.attempt)
    text = store.get(prefix + METRICS_KEY).body.decode("utf-8")
    try:
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise CorruptObjectError(f"{commit.stage}: {METRICS_KEY}: {error}") from error
    return StageCurve(
        stage=commit.stage, lines=tuple(line for line in lines if isinstance(line, dict))
    )


# ---- plots ---------------------------------------------------------------------------------------


def loss_plot(curves: Sequence[StageCurve]) -> str:
    """All losses on one axis; each stage begins where the one before ended."""
    offset = 0.0
    series = []
    for curve in curves:
        tokens, losses = curve.series("loss", against="tokens")
        if tokens:
            series.append((curve.stage, [offset + x for x in tokens], losses))
            offset += max(tokens)
    return line_plot(series, x_label="tokens, all stages", y_label="loss (nats per token)")


def reward_plot(curves: Sequence[StageCurve]) -> str:
    """Mean reward of each rollout batch."""
    series = [(c.stage, *c.series("reward", against="step")) for c in curves]
    return line_plot([s for s in series if s[1]], x_label="step", y_label="mean reward")


def accuracy_plot(commits: Sequence[Commit]) -> str:
    """Two bars per stage that measured accuracy before and after."""
    rows = [
        (c.stage, float(c.metrics["accuracy_before"]), float(c.metrics["accuracy"]))
        for c in commits
        if _is_number(c.metrics.get("accuracy_before")) and _is_number(c.metrics.get("accuracy"))
    ]
    if not rows:
        return "<p>Nothing measured yet.</p>"
    figure, axes = _figure()
    places = range(len(rows))
    axes.bar([x - 0.2 for x in places], [row[1] for row in rows], width=0.4, label="before")
    axes.bar([x + 0.2 for x in places], [row[2] for row in rows], width=0.4, label="after")
    axes.set_xticks(list(places), [row[0] for row in rows], rotation=20)
    axes.set_ylabel("accuracy, sampled")
    axes.set_ylim(0, 1)
    axes.legend()
    return _svg(figure)


def line_plot(
    series: Sequence[tuple[str, list[float], list[float]]], *, x_label: str, y_label: str
) -> str:
    """One line per named series, as inline SVG."""
    if not series:
        return "<p>Nothing measured yet.</p>"
    figure, axes = _figure()
    for name, x, y in series:
        axes.plot(x, y, label=name, linewidth=1.2)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    import matplotlib

    target = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "m1"}):
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()[target.getvalue().index("<svg") :]


# ---- tables --------------------------------------------------------------------------------------


def _status_rows(store: Store, record: RunRecord) -> list[list[str]]:
    return [stage_cells(row) for row in run_status(store, record)["stages"]]


def _metrics_table(commits: Sequence[Commit]) -> str:
    rows = [
        [commit.stage, name, f"{value:.4g}"]
        for commit in commits
        for name, value in sorted(commit.metrics.items())
        if _is_number(value)
    ]
    return _table(("stage", "metric", "value"), rows)


def _lineage_table(commits: Sequence[Commit]) -> str:
    rows = [
        [
            commit.stage,
            commit.digest[:12],
            ", ".join(f"{name} {digest[:12]}" for name, digest in commit.parents.items()),
            commit.attempt,
            duration(commit.seconds),
            size_words(sum(entry.size_bytes for entry in commit.objects)),
            commit.committed_at,
        ]
        for commit in commits
    ]
    return _table(("stage", "commit", "made from", "attempt", "time", "size", "committed"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _pre(value: object) -> str:
    return f"<details><summary>all settings</summary><pre>{_text(_json(value))}</pre></details>"


def _json(value: object) -> str:
    return json.dumps(value, indent=1)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _text(value: object) -> str:
    return escape(redact(str(value)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

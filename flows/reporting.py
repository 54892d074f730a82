"""One self-contained page about a run: plots, tables, settings, lineage. From commits only.

Every text is escaped and the plots are inline SVG: the page needs no network and runs no script.
"""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from m1.flows.plots import (
    StageCurve,
    accuracy_plot,
    is_number,
    layer_norm_plot,
    loss_plot,
    pass_plot,
    position_plot,
    reinforcement_plot,
    retrieval_plot,
    reward_plot,
)
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
        _section("Loss by position, before and after each extension", position_plot(done)),
        *[
            _section(f"Reinforcement: {curve.stage}", reinforcement_plot(curve))
            for curve in curves
            if curve.keys("pass_rates")
        ],
        _section("Gradient norm by layer", layer_norm_plot(curves)),
        _section("pass@k before and after reinforcement", pass_plot(_last(done, "pass_at_k", {}))),
        _section(
            "Retrieval by depth and length (percent: exact answers)",
            retrieval_plot(_last(done, "retrieval", [])),
        ),
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


def _last(commits: Sequence[Commit], name: str, default: Any) -> Any:
    """A metric of the last commit that has it in the form of `default`."""
    found = [c.metrics[name] for c in commits if isinstance(c.metrics.get(name), type(default))]
    return found[-1] if found else default


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


# ---- tables --------------------------------------------------------------------------------------


def _status_rows(store: Store, record: RunRecord) -> list[list[str]]:
    return [stage_cells(row) for row in run_status(store, record)["stages"]]


def _metrics_table(commits: Sequence[Commit]) -> str:
    rows = [
        [commit.stage, name, f"{value:.4g}"]
        for commit in commits
        for name, value in sorted(commit.metrics.items())
        if is_number(value)
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

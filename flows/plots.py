"""The plots of the report and of the dashboard, as inline SVG: no script, no network.

Every function takes what commits hold and answers a figure, or a sentence when nothing was
measured.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m1.infra.manifest import Commit

NOTHING = "<p>Nothing measured yet.</p>"
Series = tuple[str, list[float], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCurve:
    """What one stage measured, step by step, as its commit holds it."""

    stage: str
    lines: tuple[Mapping[str, Any], ...]

    def series(self, name: str, *, against: str) -> tuple[list[float], list[float]]:
        """The numbers of `name` and where they lie on `against`; `a.b` reads inside a mapping."""
        points = [
            (float(line[against]), float(value))
            for line in self.lines
            for value in [_inside(line, name)]
            if is_number(value) and is_number(line.get(against))
        ]
        return [x for x, _ in points], [y for _, y in points]

    def keys(self, name: str) -> list[str]:
        """Keys of the mapping `name`, over all lines."""
        return sorted({key for line in self.lines for key in line.get(name) or {}})


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


def position_plot(commits: Sequence[Commit]) -> str:
    """Held-out loss by position: as inherited, with the rotary base alone changed, trained."""
    kinds = (("_before", "before"), ("_base_only", "rotary base alone"), ("", "after training"))
    chosen = [c for c in commits if isinstance(c.metrics.get("loss_by_position"), Mapping)]
    if not chosen:
        return NOTHING
    figure, grid = _figure(columns=len(chosen))
    for axes, commit in zip(grid, chosen, strict=True):
        for suffix, label in kinds:
            buckets = commit.metrics.get(f"loss_by_position{suffix}") or {}
            ranges = sorted(buckets, key=lambda text: int(text.split("-")[0]))
            axes.plot(ranges, [buckets[name] for name in ranges], marker="o", label=label)
        axes.set_title(commit.stage, fontsize=9)
        axes.tick_params(axis="x", rotation=45, labelsize=7)
    grid[0].set_ylabel("loss (nats per token)")
    grid[-1].legend(fontsize=7)
    return _svg(figure)


def layer_norm_plot(curves: Sequence[StageCurve]) -> str:
    """Gradient norm of every layer over all training steps, as one map (log scale)."""
    name = "gradient_norm_by_layer"
    columns = [line[name] for c in curves for line in c.lines if isinstance(line.get(name), list)]
    if not columns:
        return NOTHING
    figure, (axes,) = _figure()
    by_layer = [[max(float(norm), 1e-9) for norm in layer] for layer in zip(*columns, strict=True)]
    image = axes.imshow(by_layer, norm="log", aspect="auto", interpolation="nearest")
    axes.set_xlabel("logged step, all stages")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="gradient norm")
    return _svg(figure)


def reinforcement_plot(curve: StageCurve) -> str:
    """One reinforce stage: pass rates and weights per task, lengths, off-policy measures."""
    panels = {
        "pass rate per task": [(k, f"pass_rates.{k}") for k in curve.keys("pass_rates")],
        "share of prompts per task": [(k, f"weights.{k}") for k in curve.keys("weights")],
        "response tokens": [
            ("mean", "length_mean"),
            ("P99", "length_p99"),
            ("window", "window_tokens"),
        ],
        "train-sampler gap (nats)": [("gap", "train_sampler_gap"), ("entropy", "entropy_nats")],
        "largest ratio": [("ratio", "ratio_max"), ("gradient norm", "gradient_norm")],
    }
    figure, grid = _figure(columns=len(panels))
    for axes, (title, names) in zip(grid, panels.items(), strict=True):
        for label, name in names:
            axes.plot(*curve.series(name, against="step"), label=label, linewidth=1.2)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=7)
        if names:
            axes.legend(fontsize=6)
    return _svg(figure)


def accuracy_plot(commits: Sequence[Commit]) -> str:
    """Two bars per stage that measured accuracy before and after."""
    rows = [
        (c.stage, float(c.metrics["accuracy_before"]), float(c.metrics["accuracy"]))
        for c in commits
        if is_number(c.metrics.get("accuracy_before")) and is_number(c.metrics.get("accuracy"))
    ]
    if not rows:
        return NOTHING
    figure, (axes,) = _figure()
    places = range(len(rows))
    axes.bar([x - 0.2 for x in places], [row[1] for row in rows], width=0.4, label="before")
    axes.bar([x + 0.2 for x in places], [row[2] for row in rows], width=0.4, label="after")
    axes.set_xticks(list(places), [row[0] for row in rows], rotation=20)
    axes.set_ylabel("accuracy, sampled")
    axes.set_ylim(0, 1)
    axes.legend()
    return _svg(figure)


def pass_plot(passes: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """pass@k before and after reinforcement, with 95 % intervals; a panel per task family."""
    families = sorted({family for by_family in passes.values() for family in by_family})
    if not families:
        return NOTHING
    figure, grid = _figure(columns=len(families))
    for axes, family in zip(grid, families, strict=True):
        for stage, by_family in passes.items():
            estimates = by_family.get(family, {})
            ks = sorted(estimates, key=int)
            values = [estimates[k]["value"] for k in ks]
            down = [max(0.0, estimates[k]["value"] - estimates[k]["low"]) for k in ks]
            up = [max(0.0, estimates[k]["high"] - estimates[k]["value"]) for k in ks]
            axes.errorbar(ks, values, yerr=[down, up], marker="o", capsize=3, label=stage)
        axes.set_title(family, fontsize=9)
        axes.set_xlabel("k")
        axes.set_ylim(0, 1.02)
    grid[0].set_ylabel("pass@k")
    grid[-1].legend(fontsize=7)
    return _svg(figure)


def retrieval_plot(cells: Sequence[Mapping[str, Any]]) -> str:
    """Heat maps over length and depth, plain needle and with distractors."""
    kinds = sorted({cell["distractors"] for cell in cells})
    if not kinds:
        return NOTHING
    lengths = sorted({cell["length_tokens"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    figure, grid = _figure(columns=len(kinds))
    limit = max(0.1, *(abs(cell["gain_nats"]) for cell in cells))
    for axes, kind in zip(grid, kinds, strict=True):
        found = {(c["depth"], c["length_tokens"]): c for c in cells if c["distractors"] == kind}
        gains = [[found[depth, length]["gain_nats"] for length in lengths] for depth in depths]
        image = axes.imshow(gains, cmap="RdYlGn", vmin=-limit, vmax=limit, aspect="auto")
        for y, depth in enumerate(depths):
            for x, length in enumerate(lengths):
                exact = found[depth, length]["exact"]
                axes.text(x, y, f"{exact:.0%}", ha="center", va="center", fontsize=7)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set_xlabel("window (tokens)")
        axes.set_title(f"{kind} distractors" if kind else "one needle", fontsize=9)
        figure.colorbar(image, ax=axes, label="nats gained")
    grid[0].set_ylabel("depth")
    return _svg(figure)


def line_plot(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """One line per named series, as inline SVG."""
    if not series:
        return NOTHING
    figure, (axes,) = _figure()
    for name, x, y in series:
        axes.plot(x, y, label=name, linewidth=1.2)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _svg(figure)


def is_number(value: object) -> bool:
    """Whether a value of a metric line can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inside(line: Mapping[str, Any], name: str) -> Any:
    head, _, rest = name.partition(".")
    value = line.get(head)
    return value.get(rest) if rest and isinstance(value, Mapping) else value


def _figure(*, columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(9, 3.6) if columns == 1 else (11, 3.0), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _svg(figure: Any) -> str:
    import matplotlib

    target = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "m1", "svg.fonttype": "none"}):
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()[target.getvalue().index("<svg") :]

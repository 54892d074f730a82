"""Plots show what was measured, under its name, and say so when nothing was."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from m1.flows.plots import (
    NOTHING,
    StageCurve,
    accuracy_plot,
    layer_norm_plot,
    loss_plot,
    pass_plot,
    position_plot,
    reinforcement_plot,
    retrieval_plot,
    reward_plot,
)
from m1.infra.manifest import Commit


def commit(stage: str, **metrics: object) -> Commit:
    return Commit(
        run="r1", stage=stage, fingerprint="ab" * 32, attempt="0001-aa", fence=1, parents={},
        objects=(), settings={}, metrics=metrics, versions={}, layout={}, steps=1, tokens=1,
        seconds=1.0, committed_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def texts(svg: str) -> str:
    root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", svg))  # noqa: S314  (our own)
    return "\n".join(
        "".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")
    )


CURVE = StageCurve(
    stage="reinforce-40k",
    lines=tuple(
        {
            "step": step, "tokens": 10 * step, "loss": 3.0 - step, "reward": step / 10,
            "pass_rates": {"max_fold": step / 5, "any_high": 0.5}, "weights": {"max_fold": 1.0},
            "length_mean": 20.0, "length_p99": 31, "train_sampler_gap": 1e-6,
            "entropy_nats": 0.4, "ratio_max": 1.5, "gradient_norm": 1.0,
        }
        for step in range(4)
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "plot",
    [
        loss_plot([]),
        reward_plot([]),
        accuracy_plot([commit("curate")]),
        position_plot([commit("pretrain", loss_last=3.0)]),
        pass_plot({}),
        retrieval_plot([]),
    ],
)
def test_without_measurements_a_sentence_stands_there(plot: str) -> None:
    assert plot == NOTHING


def test_series_read_inside_mappings_and_leave_out_what_is_no_number() -> None:
    assert CURVE.series("pass_rates.max_fold", against="step") == ([0, 1, 2, 3], [0, 0.2, 0.4, 0.6])
    assert CURVE.series("pass_rates.unknown", against="step") == ([], [])
    broken = StageCurve(stage="s", lines=({"step": 1, "loss": "nan"}, {"step": 2, "loss": True}))
    assert broken.series("loss", against="step") == ([], [])


def test_every_task_of_a_reinforce_stage_is_named() -> None:
    shown = texts(reinforcement_plot(CURVE))
    for words in ("max_fold", "any_high", "P99", "train-sampler gap", "share of prompts"):
        assert words in shown


def test_loss_by_position_is_shown_for_each_stage_that_extended() -> None:
    buckets = {"256-1024": 4.0, "0-64": 4.5, "64-256": 4.2}
    measured = {f"loss_by_position{suffix}": buckets for suffix in ("", "_before", "_base_only")}
    shown = texts(position_plot([commit("pretrain"), commit("extend-32k", **measured)]))
    assert "extend-32k" in shown
    assert "rotary base alone" in shown
    assert shown.index("0-64") < shown.index("64-256") < shown.index("256-1024")


def test_gradient_norms_by_layer_are_one_map_over_all_stages() -> None:
    lines = tuple({"step": n, "gradient_norm_by_layer": [0.1, 0.0, 10.0]} for n in range(3))
    svg = layer_norm_plot([StageCurve(stage="pretrain", lines=lines), CURVE])
    assert "gradient norm" in texts(svg)
    assert "<image" in svg
    assert layer_norm_plot([CURVE]) == NOTHING


def test_pass_at_k_is_shown_with_every_stage_and_family() -> None:
    estimates = {"1": {"value": 0.4, "low": 0.3, "high": 0.5}}
    shown = texts(pass_plot({"extend-1m": {"max_fold": estimates}, "reinforce-40k": {}}))
    assert "extend-1m" in shown
    assert "max_fold" in shown


def test_the_heat_map_has_a_panel_per_kind_and_a_share_per_cell() -> None:
    cells = [
        {"length_tokens": n, "depth": d, "distractors": k, "gain_nats": 0.5, "exact": 0.25}
        for n in (256, 1024)
        for d in (0.0, 1.0)
        for k in (0, 3)
    ]
    shown = texts(retrieval_plot(cells))
    assert shown.count("25%") == len(cells)
    assert "3 distractors" in shown
    assert "1,024" in shown

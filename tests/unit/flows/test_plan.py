"""`m1 plan`: what it answers for each preset, and what it refuses and offers instead."""

import json

import pytest

from m1.flows import cli
from m1.flows.planned_stages import load_planned, planned_stages
from m1.flows.preset import load_preset
from m1.infra.errors import InvalidSettingError
from m1.model.cost.memory import GPU_BYTES, memory_per_gpu


def answer_of(capsys, *arguments: str) -> dict:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_stage_of_the_full_preset_fits_80_gb_on_512_gpus():
    preset = load_preset("full")

    for stage in planned_stages(preset):
        assert stage.layout.world_size == 512
        assert memory_per_gpu(preset.model, stage.layout, stage.step).total < GPU_BYTES


def test_the_full_preset_trains_on_the_published_tokens():
    stages = {stage.name: stage for stage in planned_stages(load_preset("full"))}

    assert stages["pretrain"].tokens == pytest.approx(7.5e12, rel=1e-4)
    assert stages["extend-128k"].tokens == pytest.approx(300e9, rel=1e-2)
    assert stages["extend-512k"].tokens == pytest.approx(32e9, rel=1e-2)
    assert stages["extend-1m"].tokens == pytest.approx(26e9, rel=1e-2)


def test_the_answer_tells_memory_communication_and_flops_of_every_training_stage(capsys):
    plan = answer_of(capsys, "--preset", "full", "--set", "layout.tensor=8")

    assert list(plan["stages"]) == [
        "pretrain", "sft", "extend-32k", "extend-128k", "extend-512k", "extend-1m",
        "reinforce-40k", "reinforce-80k",
    ]  # fmt: skip
    stage = plan["stages"]["extend-1m"]
    memory = stage["memory_per_gpu"]
    assert memory["total"] == sum(
        memory[kind] for kind in ("weights", "gradients", "optimizer", "activations")
    )
    assert stage["activations_by_recompute"][stage["layout"]["recompute"]] == memory["activations"]
    sent = stage["communication_bytes_per_step"]
    assert {"tensor", "sequence", "context", "expert", "pipeline", "data", "total"} == set(sent)
    assert sent["total"] == sum(value for axis, value in sent.items() if axis != "total")
    lengths = [row["tokens"] for row in plan["flops_by_length"]]
    assert lengths == sorted(lengths)
    assert plan["compute_curve"]["causal"][0]["tokens"] == 16_384


def test_a_price_changes_the_money_and_nothing_else(capsys):
    usual = answer_of(capsys, "--preset", "full")
    double = answer_of(capsys, "--preset", "full", "--price", "4.14")

    assert double["cost"]["total"] == pytest.approx(2 * usual["cost"]["total"])
    assert (usual["prices"]["per_gpu_hour"], double["prices"]["per_gpu_hour"]) == (2.07, 4.14)
    money = {"cost": None, "prices": None}
    assert {**double, **money} == {**usual, **money}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["layout.tensor=3"], ["pretrain: tensor = 3", "64 heads", "--set layout.tensor=4"]),
        (["layout.tensor=16"], ["key/value heads", "--set layout.tensor=8"]),
        (["layout.expert=12"], ["32 experts", "--set layout.expert=16"]),
        (
            ["layouts.extend-1m.tensor=2"],
            ["extend-1m: gigabytes per GPU", "at most 80", "--set layouts.extend-1m."],
        ),
        (["pretrain.windows_per_step=15625"], ["15625 windows per step", "nearest"]),
        (["extend-32k.window_tokens=32760"], ["window_tokens = 32760", "a multiple of 32"]),
        (["model.num_layers=4"], ["layout.pipeline", "num_layers = 4"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_a_layout_that_cannot_work_is_refused_with_reason_and_remedy(capsys, overrides, words):
    arguments = [text for override in overrides for text in ("--set", override)]

    assert cli.main(["plan", "--preset", "full", *arguments, "--json"]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    for word in words:
        assert word in captured.err


def test_following_the_advice_leads_to_a_plan():
    overrides = ["layouts.extend-1m.tensor=2"]
    for _ in range(3):
        try:
            preset = load_planned("full", overrides)
            break
        except InvalidSettingError as refusal:
            advice = refusal.accepted.split("nearest layout that works: ")[1]
            overrides += [part for part in advice.split() if part != "--set"]

    own = preset.layout_of("extend-1m")
    assert own.world_size == 512


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--set", "layout.tensor=x"], "layout.tensor"),
        (["--set", "layout.tenser=2"], "layout.tenser"),
        (["--price", "-1"], "--price"),
        (["--price", "nan"], "--price"),
        (["--utilisation", "0"], "--utilisation"),
        (["--gpu-gigabytes", "0"], "--gpu-gigabytes"),
        (["--trials", "0", "--simulate"], "--trials"),
        (["--seed", "-1", "--simulate"], "--seed"),
        (["--node-failures-per-year", "inf", "--simulate"], "--node-failures-per-year"),
        (["--restart-minutes", "0", "--simulate"], "--restart-minutes"),
        (["--store-gigabytes-per-second", "-2", "--simulate"], "--store-gigabytes-per-second"),
        (["--plot", "curve.txt"], "--plot"),
        (["--plot", "/nowhere/at/all.svg"], "--plot"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_that_names_the_field(capsys, arguments, field):
    assert cli.main(["plan", "--preset", "full", *arguments]) == 2

    captured = capsys.readouterr()
    assert f"m1: {field} = " in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_a_run_that_gets_nowhere_is_refused(capsys):
    arguments = ["--simulate", "--node-failures-per-year", "100000"]

    assert cli.main(["plan", "--preset", "full", *arguments]) == 2

    assert "hardly a chance" in capsys.readouterr().err


def test_simulation_reports_time_share_and_money_with_percentiles(capsys):
    simulation = answer_of(capsys, "--preset", "full", "--simulate", "--trials", "200")[
        "simulation"
    ]

    assert simulation["circumstances"]["trials"] == 200
    for part in (simulation["total"], *simulation["stages"].values()):
        for name in ("hours", "effective_share", "cost"):
            assert {"mean", "p5", "p50", "p95"} == set(part[name])
        assert 0 < part["effective_share"]["mean"] < 1
    pretrain = simulation["stages"]["pretrain"]["checkpoint"]
    hours = pretrain["expected_hours"]
    assert hours["best"] <= min(hours["young"], hours["daly"], hours["preset"])


def test_tables_and_picture_show_the_same_plan(capsys, tmp_path):
    picture = tmp_path / "plan.svg"

    assert cli.main(["plan", "--simulate", "--trials", "10", "--plot", str(picture)]) == 0

    shown = capsys.readouterr().out
    for words in ("active per token", "DeepSeek-R1", "GPU-hours", "on machines that fail"):
        assert words in shown
    assert "<svg" in picture.read_text()

"""Presets and overrides: what is accepted, and how a mistake is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1.flows.preset import (
    PAPER_ORDER,
    apply_overrides,
    load_preset,
    preset_names,
    resolve,
    split_override,
)
from m1.infra.errors import InvalidSettingError, UsageError
from m1.infra.strict_yaml import parse_mapping, parse_yaml


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_resolves_and_survives_its_own_document(name):
    preset = load_preset(name)

    assert resolve(name, preset.to_document()) == preset


def test_the_full_preset_is_the_released_model_on_512_ranks():
    preset = load_preset("full")

    assert preset.layout.world_size == 512
    assert preset.model.num_layers == 80
    assert preset.settings["pretrain"].learning_rate == 8e-5


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["layout.processes_per_node=5", "layout.expert=5"], "layout.expert"),
        (
            ["layout.processes_per_node=2", "layout.context=2", "sft.window_tokens=126"],
            "sft.window_tokens",
        ),
    ],
)
def test_a_layout_that_cannot_share_the_model_or_a_window_is_refused(overrides, field):
    with pytest.raises(InvalidSettingError) as refused:
        load_preset("toy", overrides)

    assert refused.value.field == field


def test_overrides_reach_every_section():
    changed = load_preset(
        "toy",
        [
            "pretrain.learning_rate=1e-3",
            "model.hidden_size=128",
            "run.seed=3",
            "layout.processes_per_node=2",
            "reinforce-40k.tasks.max_fold.share=2",
            "run.order=paper",
        ],
    )

    assert changed.settings["pretrain"].learning_rate == 0.001
    assert (changed.model.hidden_size, changed.seed) == (128, 3)
    assert changed.layout.processes_per_node == 2
    assert changed.settings["reinforce-40k"].tasks["max_fold"].share == 2
    assert changed.settings["reinforce-40k"].tasks["max_fold"].difficulty == 4
    assert changed.order == PAPER_ORDER


def test_a_stage_may_have_a_layout_of_its_own():
    preset = load_preset("full", ["layouts.sft.context=4", "layout.nodes=128"])

    assert preset.layout_of("sft").context == 4
    assert preset.layout_of("pretrain").context == preset.layout.context == 2
    assert preset.layout_of("extend-1m").pipeline == 4
    assert {preset.layout_of(stage).world_size for stage in preset.order} == {1024}


def test_the_run_layout_still_rules_what_a_stage_does_not_change():
    stored = resolve("full", load_preset("full").to_document())

    assert apply_overrides(stored, ["layout.nodes=128"]).layout_of("extend-1m").nodes == 128


@pytest.mark.parametrize(
    ("override", "field", "accepted"),
    [
        ("pretrain.learning_rte=1", "pretrain.learning_rte", "did you mean 'learning_rate'"),
        ("pretran.steps=1", "setting", "did you mean 'pretrain'"),
        ("pretrain.learning_rate=-1", "pretrain.learning_rate", "> 0, <= 10"),
        ("pretrain.learning_rate=.nan", "pretrain.learning_rate", "> 0, <= 10"),
        ("pretrain.steps=1.5", "pretrain.steps", ">= 1"),
        ("pretrain.steps=", "pretrain.steps", ">= 1"),
        ("model.num_heads=5", "model.num_heads", "multiple of num_key_value_heads"),
        ("reinforce-40k.objective=ppo", "reinforce-40k.objective", "'cispo' or 'grpo'"),
        ("reinforce-40k.tasks.mx_fold.share=2", "reinforce-40k.tasks", "max_fold"),
        ("reinforce-40k.tasks.max_fold.shre=2", "reinforce-40k.tasks.max_fold.shre", "share"),
        ("layout.tensor=3", "layout", "cannot be split"),
        ("layout.recompute=all", "layout.recompute", "'selective' or 'full'"),
        ("layouts.sft.tensor=0", "layouts.sft.tensor", ">= 1"),
        ("layouts.sft.tenser=2", "layouts.sft.tenser", "did you mean 'tensor'"),
        ("layouts.sf.tensor=2", "stage", "did you mean 'sft'"),
        ("layouts.sft=2", "sft", "settings by name"),
        ("run.seed=-1", "run.seed", ">= 0"),
        ("run.sed=1", "setting", "run.seed"),
        ("run.order=[curate, sft]", "run.order", "pretrain before it"),
        ("run.order=[curate, pretrain, pretrain]", "run.order", "each stage once"),
        ("steps=1", "--set", "path=value"),
        ("pretrain.steps", "--set", "path=value"),
        ("pretrain.steps.deep=1", "pretrain.steps.deep", "no settings inside"),
    ],
)
def test_a_mistake_names_field_value_and_what_is_accepted(override, field, accepted):
    with pytest.raises(InvalidSettingError) as caught:
        apply_overrides(load_preset("toy"), [override])

    assert caught.value.field == field
    assert accepted in caught.value.accepted


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(InvalidSettingError, match="did you mean 'toy'"):
        load_preset("toyy")


def test_an_unknown_section_of_a_file_is_refused(tmp_path):
    (tmp_path / "odd.yaml").write_text("stagez: {}\n")

    with pytest.raises(InvalidSettingError, match="did you mean 'stages'"):
        load_preset("odd", directory=tmp_path)


def test_a_file_that_extends_another_changes_only_what_it_says(tmp_path):
    (tmp_path / "base.yaml").write_text("stages: {pretrain: {steps: 7, window_tokens: 64}}\n")
    (tmp_path / "child.yaml").write_text("extends: base\nstages: {pretrain: {steps: 9}}\n")

    pretrain = load_preset("child", directory=tmp_path).settings["pretrain"]

    assert (pretrain.steps, pretrain.window_tokens) == (9, 64)


def test_files_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b\n")
    (tmp_path / "b.yaml").write_text("extends: a\n")

    with pytest.raises(InvalidSettingError, match="circle"):
        load_preset("a", directory=tmp_path)


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "a: &x 1\nb: *x", "a: !!python/object/apply:os.system [ls]", "[1, 2]", "1: 2", "a: ["],  # noqa: E501
)  # fmt: skip
def test_yaml_that_could_surprise_is_refused(text):
    with pytest.raises(UsageError):
        parse_mapping(text, source="test")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_reads_back_as_itself(value):
    assert parse_yaml(repr(value), source="test") == value


@given(st.text(max_size=40))
def test_any_text_is_an_override_or_a_named_error(text):
    try:
        path, _ = split_override(text)
    except UsageError:
        path = ("named", "error")
    assert len(path) >= 2

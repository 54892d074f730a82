"""Fingerprints: what moves them, what does not, and what a resume may change."""

import dataclasses

import pytest

from m1.flows.identity import identity_changes, stage_identity
from m1.flows.preset import apply_overrides
from m1.flows.run_record import RunRecord, check_unchanged, load_record, run_names, save_record
from m1.infra.errors import CorruptObjectError, SettingsChangedError, UsageError
from m1.infra.names import run_record_key


def fingerprint(preset, stage, parents=None):
    return stage_identity(preset, stage, parents or {}).fingerprint()


@pytest.mark.parametrize(
    ("override", "moved"),
    [
        ("pretrain.steps=7", True),
        ("model.hidden_size=128", True),
        ("run.seed=9", True),
        ("pretrain.checkpoint_every_steps=7", False),
        ("pretrain.log_every_steps=7", False),
        ("layout.processes_per_node=2", False),
        ("sft.steps=7", False),
    ],
)
def test_only_what_changes_the_result_moves_the_fingerprint(preset, override, moved):
    changed = apply_overrides(preset, [override])

    assert (fingerprint(changed, "pretrain") != fingerprint(preset, "pretrain")) is moved


def test_a_parent_committed_anew_moves_the_fingerprint(preset):
    assert fingerprint(preset, "pretrain", {"curate": "a"}) != fingerprint(
        preset, "pretrain", {"curate": "b"}
    )


def test_the_corpus_depends_on_the_tokenizer_but_not_on_the_width(preset):
    wider = apply_overrides(preset, ["model.hidden_size=128"])
    larger = apply_overrides(preset, ["model.vocabulary_size=4096"])

    assert fingerprint(wider, "curate") == fingerprint(preset, "curate")
    assert fingerprint(larger, "curate") != fingerprint(preset, "curate")


def test_a_record_survives_the_store(store, record):
    assert load_record(store, "r1") == record
    assert run_names(store) == ["r1"]


def test_changed_settings_are_refused_with_the_line_to_type(record, preset):
    changed = apply_overrides(preset, ["sft.steps=7", "sft.tasks.max_fold.share=2"])

    with pytest.raises(SettingsChangedError) as caught:
        check_unchanged(record, changed)

    assert set(caught.value.changes) == {"sft.steps", "sft.tasks.max_fold.share"}
    assert "m1 fork r1 r1-2 --from sft" in str(caught.value)


def test_where_a_run_runs_may_change_on_resume(store, record, preset):
    moved = apply_overrides(preset, ["layout.processes_per_node=2", "sft.log_every_steps=5"])

    save_record(store, dataclasses.replace(record, preset=moved))

    assert identity_changes(preset, moved) == {}
    assert load_record(store, "r1").preset.layout.processes_per_node == 2


def test_a_second_writer_with_other_settings_changes_nothing(store, record, preset):
    other = dataclasses.replace(record, preset=apply_overrides(preset, ["run.seed=5"]))

    with pytest.raises(SettingsChangedError, match=r"run\.seed: 1 -> 5"):
        save_record(store, other)

    assert load_record(store, "r1") == record


@pytest.mark.parametrize("body", [b"{}", b"[]", b"{", b'{"schema_version":1,"run":"r1"}'])
def test_a_torn_record_is_named(store, body):
    store.put(run_record_key("r1"), body)

    with pytest.raises((CorruptObjectError, UsageError)):
        load_record(store, "r1")


def test_a_record_is_plain_json(record):
    assert RunRecord.from_bytes(record.to_bytes()).to_bytes() == record.to_bytes()

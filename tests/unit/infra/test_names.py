"""Names are narrow, keys stay inside the store."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1.infra import names
from m1.infra.errors import InvalidSettingError

HOSTILE = [
    "", ".", "..", "../x", "a/../b", "a/./b", "/a", "a/", "a//b", "a\\b", "a\x00", "a\nb",
    "a\u202eb", "\ud800", "a" * 1025, "\u00e9" * 513,
]  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_refused(key: str) -> None:
    with pytest.raises(InvalidSettingError, match="key"):
        names.validate_key(key)


@given(st.text())
def test_an_accepted_key_is_a_path_without_escape(text: str) -> None:
    try:
        key = names.validate_key(text)
    except InvalidSettingError:
        return
    assert key == text
    assert 0 < len(key.encode()) <= 1024
    assert not {"", ".", ".."} & set(key.split("/"))
    assert "\\" not in key
    assert key.isprintable()


@given(st.text())
def test_only_plain_names_are_run_ids(text: str) -> None:
    wanted = re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text) is not None and text.isascii()
    if wanted:
        assert names.parse_run_id(text) == text
        return
    with pytest.raises(InvalidSettingError, match="run id"):
        names.parse_run_id(text)


@pytest.mark.parametrize(
    "text", ["Run", "-a", "a_b", "a/b", "..", "a" * 64, "a\n", "\u0661", "runs%2f"]
)
def test_hostile_names_are_refused_everywhere(text: str) -> None:
    for build in (
        lambda: names.parse_run_id(text),
        lambda: names.parse_stage_name(text),
        lambda: names.run_record_key(text),
        lambda: names.lease_key("run", text),
        lambda: names.commit_key(text, "stage"),
        lambda: names.attempt_prefix("run", "stage", text),
    ):
        with pytest.raises(InvalidSettingError):
            build()


def test_keys_have_the_documented_layout() -> None:
    attempt = names.attempt_name(3, "1f2e3d4c99")
    assert attempt == "0003-1f2e3d4c"
    assert names.run_record_key("r") == "runs/r/run.json"
    assert names.lease_key("r", "sft") == "runs/r/sft/lease.json"
    assert names.progress_key("r", "sft") == "runs/r/sft/progress.json"
    assert names.commit_key("r", "sft") == "runs/r/sft/commit.json"
    assert names.attempt_prefix("r", "sft", attempt) == "runs/r/sft/attempts/0003-1f2e3d4c/"
    assert names.attempts_prefix("r", "sft") == "runs/r/sft/attempts/"

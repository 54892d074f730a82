"""Hostile YAML and JSON: refused by name, in little time and memory, or read as what it says."""

import contextlib
import json
import math
import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m1.flows.accepted import validated
from m1.flows.preset import load_preset
from m1.infra.canonical_json import parse_json
from m1.infra.errors import CorruptObjectError, InvalidSettingError, M1Error, UsageError
from m1.infra.manifest import Commit
from m1.infra.strict_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml
from m1.stages.checkpoints import CheckpointRecord
from m1.stages.registry import KINDS
from tests.faults.rows import count

FIELDS = [(kind.settings, name) for kind in KINDS for name in kind.settings.model_fields]
EXAMPLES = count(500)
BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@contextlib.contextmanager
def quick(seconds: float = 5.0) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.mark.fault(40, ending="refused")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "aliases"),
        ("a: 1\na: 2", "twice"),
        ("a: {b: 1, b: 2}", "twice"),
        ("[" * 3000 + "]" * 3000, "deeper"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "deeper"),
        ("{a: " * 3000, "deeper"),
        ("- " * 3000, "deeper"),
        ("x: " + "y" * MAX_BYTES, "larger"),
        ("!!python/object/apply:os.system ['true']", "python"),
        ("a: !!python/name:os.system ''", "python"),
        ("a: !custom 1", "custom"),
        ("? [a]\n: 1", "not text"),
        ("1: x", "not text"),
        ("---\na: 1\n---\nb: 2", "document"),
        ("a: 1\n  b: 2", "accepted"),
        ("\x00", "accepted"),
        ("<<: {a: 1}", "merge"),
    ],
    ids=lambda value: value[:12],
)
def test_hostile_yaml_is_refused_quickly_and_by_name(text: str, problem: str) -> None:
    with quick(), pytest.raises(UsageError, match=problem):
        parse_yaml(text, source="the file")


@pytest.mark.fault(40, ending="contained")
@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("1_000", 1000),
     ("'1e-4'", "1e-4"), (".nan", ".nan"), (".inf", ".inf"), ("nan", "nan"), ("1e", "1e")],
)  # fmt: skip
def test_numbers_are_what_they_look_like(text: str, value: object) -> None:
    assert parse_yaml(text, source="the file") == value


@pytest.mark.fault(40, ending="contained")
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(max_size=300) | st.text("[]{}:,&*!|>- \n'\"ab1", max_size=300))
@example("%TAG ! tag:x,2000:\n--- !a")
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_yaml(text, source="the file")


@pytest.mark.fault(40, 42, ending="refused")
@pytest.mark.parametrize(
    "body",
    [b"NaN", b'{"a":-Infinity}', b"1e999", b'{"a":[-1e999]}', b'{"a":1,"a":1}', b"[" * 100_000,
     b'{"a":' * 100_000, b"9" * 100_000, b"\xed\xa0\x80", b'"\xff"', b"{}x", b"'a'", b""],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_hostile_json_is_refused_quickly(body: bytes) -> None:
    with quick(), pytest.raises(CorruptObjectError):
        parse_json(body)


@pytest.mark.fault(42, ending="refused")
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["schema_version", "objects", "fingerprint", "key", "step", "run"]),
                inner,
                max_size=6,
            )
        ),
        max_leaves=20,
    )
)
def test_a_manifest_of_any_shape_is_corrupt_and_nothing_worse(value: object) -> None:
    body = json.dumps(value).encode()
    for parse in (Commit.from_bytes, CheckpointRecord.from_bytes):
        with pytest.raises(CorruptObjectError):
            parse(body)


@pytest.mark.fault(41, ending="refused")
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.sampled_from(FIELDS),
    st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.sampled_from(["nan", "inf", "-inf", "1e308", "1e999", "0x10", "", "1e-4", "\x00"])
    | st.lists(st.integers(), max_size=1000),
)  # fmt: skip
def test_a_setting_is_finite_and_in_range_or_refused_by_name(
    field: tuple[type, str], value: object
) -> None:
    kind, name = field
    try:
        accepted = getattr(validated(kind, {name: value}, prefix="stage"), name)
    except InvalidSettingError:
        return
    if isinstance(accepted, float | int):
        assert math.isfinite(accepted)


@pytest.mark.fault(41, ending="refused")
@pytest.mark.parametrize(
    "override",
    ["model.num_layers=1000000000", "pretrain.steps=-1", "pretrain.learning_rate=1e308",
     "pretrain.learning_rate=nan", "pretrain.learning_rate=.inf", "model.hidden_size=1e9",
     "run.seed=99999999999", "run.order=[curate, ../../etc]", "nothing.there=1", "=1", "a=b=c"],
)  # fmt: skip
def test_an_absurd_override_is_refused_at_the_edge(override: str) -> None:
    with quick(2.0), pytest.raises(M1Error):
        load_preset("toy", [override])

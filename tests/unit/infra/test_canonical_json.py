"""One value, one byte string; strict on the way back."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1.infra.canonical_json import canonical_json, parse_json, sha256_hex
from m1.infra.errors import CorruptObjectError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=20
)


@given(VALUES)
def test_round_trip(value: object) -> None:
    body = canonical_json(value)
    assert parse_json(body) == value
    assert canonical_json(parse_json(body)) == body


@given(st.dictionaries(KEYS, SCALARS))
def test_order_of_insertion_does_not_matter(value: dict[str, object]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_numbers_that_json_lacks_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"NaN", b'{"a":Infinity}', b'{"a":1,"a":2}', b"\xff\xfe", b"{} {}", b"\x00",
        b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000,
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_garbage_is_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptObjectError):
        parse_json(body)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_corrupt(body: bytes) -> None:
    try:
        value = parse_json(body)
    except CorruptObjectError:
        return
    assert json.loads(body) == value


def test_size_is_bounded_before_parsing() -> None:
    with pytest.raises(CorruptObjectError, match="at most 10"):
        parse_json(b'"' + b"a" * 20 + b'"', max_bytes=10)


def test_digest_is_sha256() -> None:
    assert sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()

"""One byte string per JSON value, so digests mean something. Not a general JSON library."""

import dataclasses
import hashlib
import json
import math
from typing import NoReturn

from m1.infra.errors import CorruptObjectError


def canonical_json(value: object) -> bytes:
    """Encode with sorted keys, no spaces, UTF-8; a dataclass is its fields by name.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=_fields_of,
    ).encode("utf-8")


def parse_json(body: bytes, *, max_bytes: int = 64 << 20) -> object:
    """Decode strictly: only finite numbers, no duplicate keys, bounded size.

    Raises:
        CorruptObjectError: the bytes are not such a document.
    """
    if len(body) > max_bytes:
        raise CorruptObjectError(f"JSON document of {len(body)} bytes; at most {max_bytes}")
    try:
        value: object = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise CorruptObjectError(f"not a JSON document: {error}") from error
    return value


def sha256_hex(body: bytes) -> str:
    """Lower-case hexadecimal sha256 of `body`."""
    return hashlib.sha256(body).hexdigest()


def _fields_of(value: object) -> dict[str, object]:
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is not a JSON value")
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is larger than any number")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result

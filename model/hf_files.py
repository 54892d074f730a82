"""Reading a folder of safetensors that nobody vouches for: every surprise is a named error.

Headers are checked before a tensor is read; a tensor's values are checked as it is read.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from m1.infra.errors import BadInputError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_JSON_BYTES = 64 * 1024 * 1024  # ours: the released index has 8,243 names in under 1 MB
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
# persistent buffers of transformers' lightning layer; computed from the config, never read
_BUFFER = re.compile(r".*\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size."""
    if not path.is_file():
        raise BadInputError(f"{path.name} is missing")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BadInputError(f"{path.name} is larger than {MAX_JSON_BYTES} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInputError(f"{path.name} is not a JSON object")
    return content


def tensor_places(directory: Path) -> dict[str, str]:
    """File name of each tensor; names that could leave the folder are refused."""
    if not (directory / INDEX_FILE).is_file():
        with open_shard(directory / SINGLE_FILE) as opened:
            return dict.fromkeys(opened.keys(), SINGLE_FILE)
    places = read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(shard, str) and _SHARD_NAME.fullmatch(shard) for shard in places.values()
    ):
        raise BadInputError(f"{INDEX_FILE}: weight_map must map tensor names to plain file names")
    return places


def by_shard(places: Mapping[str, str], names: Iterable[str]) -> dict[str, list[str]]:
    """The names grouped by the file they are in."""
    shards: dict[str, list[str]] = {}
    for name in names:
        shards.setdefault(places[name], []).append(name)
    return shards


def check_shards(
    directory: Path, places: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Headers only: every shard opens, and holds its tensors in the expected shapes and no others.

    Raises:
        BadInputError: names the first file and tensor that disagree.
    """
    for shard, names in by_shard(places, shapes).items():
        with open_shard(directory / shard) as opened:
            inside = set(opened.keys())
            for name in names:
                if name not in inside:
                    raise BadInputError(f"{shard} does not hold {name}, as {INDEX_FILE} says")
                check_shape(name, tuple(opened.get_slice(name).get_shape()), shapes[name])
            check_names(inside, set(names))


def open_shard(path: Path) -> Any:
    """A shard with a verified header; safetensors checks lengths, offsets and overlaps.

    Raises:
        BadInputError: missing, or not a safetensors file.
    """
    if not path.is_file():
        raise BadInputError(f"{path.name} is missing")
    _check_header_length(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BadInputError(f"{path.name} is not a safetensors file: {error}") from None


def _check_header_length(path: Path) -> None:
    """The length stands first; a false one must not make anybody allocate it."""
    with path.open("rb") as stream:
        start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    limit = min(MAX_JSON_BYTES, path.stat().st_size - 8)
    if not 0 < length <= limit:
        raise BadInputError(
            f"{path.name} is not a safetensors file: its header has {length} bytes, "
            f"accepted: 1 to {limit}"
        )


def check_names(found: set[str], expected: set[str]) -> None:
    """Refuse missing and unknown tensors; transformers' computed buffers may be there."""
    missing = sorted(expected - found)
    unknown = sorted(name for name in found - expected if not _BUFFER.fullmatch(name))
    if missing:
        raise BadInputError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if unknown:
        raise BadInputError(
            f"{len(unknown)} tensors are unknown, the first is {unknown[0][:200]!r}"
        )


def check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse another shape."""
    if found != expected:
        raise BadInputError(f"{name} has shape {found}, expected {expected}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse integers, NaN and infinities."""
    if not tensor.is_floating_point():
        raise BadInputError(f"{name} is of type {tensor.dtype}, expected a floating type")
    if not bool(torch.isfinite(tensor).all()):
        raise BadInputError(f"{name} holds values that are not finite")

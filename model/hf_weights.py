"""Weights to and from the two published folders, one weight in memory at a time.

Tensor names on disk are those of the released M1 in both; each tensor is one part of one Megatron
weight, so a single table serves both directions. Two layouts:

`transformers`: plain `AutoModelForCausalLM.from_pretrained` loads it as `MiniMaxForCausalLM`.
That class rotates whole heads, M1 only the leading elements. The folder says `rope_type:
proportional`, which gives the other elements frequency zero, and the rows of q and k are
reordered so that the pairs meet: the logits are the same, and no remote code is needed.

`m1`: rows and config.json as MiniMax released them (facts sheet 1.1, 1.7).

A folder is written beside its place and moved there whole. Not here: config.json (`hf_config`),
reading files nobody vouches for (`hf_files`), the tokenizer, a model spread over ranks.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import torch
from safetensors.torch import save_file
from torch import Tensor

from m1.infra.errors import BadInputError
from m1.model.config import ModelConfig
from m1.model.decode_network import weight_shapes
from m1.model.hf_config import (
    CONFIG_FILE,
    DTYPE_NAMES,
    GENERATION_FILE,
    ExportOptions,
    check_described,
    describe,
    generation_config,
    is_reordered,
)
from m1.model.hf_files import (
    INDEX_FILE,
    by_shard,
    check_finite,
    check_names,
    check_shape,
    check_shards,
    open_shard,
    read_json,
    tensor_places,
)
from m1.model.hf_layout import Part, disk_parts, needs_reordering

DEFAULT_SHARD_BYTES = 5_000_000_000


def export_hugging_face(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    directory: Path,
    **options: Unpack[ExportOptions],
) -> list[Path]:
    """Write the folder and return its files; after an error there is no folder.

    Weights are stored in `dtype`, routers in fp32 as in the released checkpoint. Values are taken
    from `weights` a shard at a time: a mapping that gathers on access needs no more memory.

    Raises:
        BadInputError: a weight is missing, unknown, of a wrong shape or not finite; the layout
            cannot express the configuration; or the folder is not empty.
    """
    limit = options.get("max_shard_bytes", DEFAULT_SHARD_BYTES)
    if options["dtype"] not in DTYPE_NAMES or limit < 1:
        raise BadInputError(
            f"dtype = {options['dtype']}, max_shard_bytes = {limit}; accepted: "
            f"{', '.join(DTYPE_NAMES.values())}; at least 1"
        )
    described = describe(config, **options)
    shapes = weight_shapes(config)
    check_names(set(weights), set(shapes))
    is_turned = options.get("layout", "transformers") == "transformers"
    parts = disk_parts(config, is_reordered=is_turned and needs_reordering(config))
    with _moved_in_place(Path(directory)) as staging:
        files = _write_shards(
            _Checked(weights, shapes), parts, staging, dtype=options["dtype"], limit_bytes=limit
        )
        stop = options.get("stop_token_ids", ())
        for name, content in (
            (GENERATION_FILE, generation_config(stop)),
            (CONFIG_FILE, described),
        ):
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (staging / name).write_text(text, encoding="utf-8")
            files.append(staging / name)
    return [Path(directory) / path.name for path in files]


def stream_hugging_face(
    directory: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    only: Collection[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Megatron weights by name, one in memory at a time, in the order of the layers.

    Args:
        directory: a folder of either layout.
        config: must agree with it.
        dtype: type of the weights.
        only: Megatron names to read; by default all of them.

    Raises:
        BadInputError: the folder disagrees with `config`, a file is missing or malformed, a tensor
            is missing, unknown, of a wrong shape or not finite. All of it is checked before the
            first weight is given, except finiteness.
    """
    directory = Path(directory)
    described = read_json(directory / CONFIG_FILE)
    parts = disk_parts(config, is_reordered=is_reordered(described, config))
    check_described(described, config)
    places = tensor_places(directory)
    check_names(set(places), set(parts))
    check_shards(directory, places, {name: part.shape for name, part in parts.items()})
    return _weights(directory, config, places, parts, (dtype, only))


def import_hugging_face(
    directory: Path, config: ModelConfig, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """All of `stream_hugging_face` at once."""
    return dict(stream_hugging_face(directory, config, dtype=dtype))


def _weights(
    directory: Path,
    config: ModelConfig,
    places: Mapping[str, str],
    parts: Mapping[str, Part],
    type_and_only: tuple[torch.dtype, Collection[str] | None],
) -> Iterator[tuple[str, Tensor]]:
    dtype, only = type_and_only
    sources: dict[str, list[str]] = {}
    for name, part in parts.items():
        sources.setdefault(part.weight, []).append(name)
    for weight_name, shape in weight_shapes(config).items():
        if only is not None and weight_name not in only:
            continue
        weight = torch.empty(shape, dtype=dtype)
        for shard, names in by_shard(places, sources[weight_name]).items():
            with open_shard(directory / shard) as opened:
                for name in names:
                    tensor = opened.get_tensor(name)
                    check_finite(name, tensor)
                    weight[parts[name].index] = tensor.to(dtype)
        yield weight_name, weight


@contextmanager
def _moved_in_place(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` that becomes it at the end, or vanishes with an error."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInputError(f"{directory} is not empty; export into a new folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp keeps others out
        staging.replace(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _Checked:
    """The weights, each checked when it is first used; holds the last one only."""

    def __init__(
        self, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._weights = weights
        self._shapes = shapes
        self._name = ""
        self._tensor = torch.empty(0)

    def part(self, part: Part, dtype: torch.dtype) -> Tensor:
        """A copy of one part, of the given type, on the CPU."""
        if part.weight != self._name:
            tensor = self._weights[part.weight].detach()
            check_shape(part.weight, tuple(tensor.shape), self._shapes[part.weight])
            check_finite(part.weight, tensor)
            self._name, self._tensor = part.weight, tensor
        piece = self._tensor[part.index].to("cpu", dtype)
        return piece.clone(memory_format=torch.contiguous_format)


def _write_shards(
    weights: _Checked,
    parts: Mapping[str, Part],
    directory: Path,
    *,
    dtype: torch.dtype,
    limit_bytes: int,
) -> list[Path]:
    """One shard in memory at a time; then the index."""
    types = {name: torch.float32 if name.endswith("moe.gate.weight") else dtype for name in parts}
    sizes = {name: math.prod(part.shape) * types[name].itemsize for name, part in parts.items()}
    shards = _group(sizes, limit_bytes)
    places, files = {}, []
    for number, names in enumerate(shards, 1):
        file = directory / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: weights.part(parts[name], types[name]) for name in names}
        save_file(tensors, file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file.name))
        files.append(file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    path = directory / INDEX_FILE
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [*files, path]


def _group(sizes: Mapping[str, int], limit_bytes: int) -> list[list[str]]:
    """Names in order, a new shard where the limit would be passed; a shard has at least one."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards

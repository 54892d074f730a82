"""Weights to and from a folder that plain `AutoModelForCausalLM.from_pretrained` loads.

On disk it is transformers' `MiniMaxForCausalLM` with the tensor names of the released M1. Each
tensor on disk is one part of one Megatron weight, so a single table serves both directions.

Rotary: transformers' MiniMax rotates whole heads, M1 only the leading elements. The folder says
`rope_type: proportional`, which gives the other elements frequency zero, and the rows of q and k
are reordered so that the pairs meet: the logits are the same, and no remote code is needed.

Not here: the tokenizer, and gathering a model that is spread over ranks.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m1.infra.errors import BadInputError
from m1.model.config import ModelConfig
from m1.model.decode_network import weight_shapes
from m1.model.hf_layout import Part, disk_parts, needs_reordering

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DEFAULT_SHARD_BYTES = 5_000_000_000
MAX_JSON_BYTES = 64 * 1024 * 1024  # ours: the released index has 8,243 names in under 1 MB
TRANSFORMERS_LIGHTNING_EPSILON = 1e-6  # a constant in transformers, not a configuration field
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
# persistent buffers of transformers' lightning layer; computed from the config, never read
_BUFFER = re.compile(r".*\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)")


class ExportOptions(TypedDict):
    """How to write the folder: type on disk, rotary base, longest window, size of one file."""

    dtype: torch.dtype
    rotary_base: float
    window_tokens: int
    max_shard_bytes: NotRequired[int]
    stop_token_ids: NotRequired[tuple[int, ...]]


def export_hugging_face(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    directory: Path,
    **options: Unpack[ExportOptions],
) -> list[Path]:
    """Write the folder and return its files; everything is checked before the first is written.

    Weights are stored in `dtype`, routers in fp32 as in the released checkpoint.

    Raises:
        BadInputError: a weight is missing, unknown, of a wrong shape or not finite; transformers
            cannot express the configuration; or the folder is not empty.
    """
    limit = options.get("max_shard_bytes", DEFAULT_SHARD_BYTES)
    if options["dtype"] not in DTYPE_NAMES or limit < 1:
        raise BadInputError(
            f"dtype = {options['dtype']}, max_shard_bytes = {limit}; accepted: "
            f"{', '.join(DTYPE_NAMES.values())}; at least 1"
        )
    _check_expressible(config)
    _check_weights(weights, config)
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise BadInputError(f"{directory} is not empty; export into a new folder")
    directory.mkdir(parents=True, exist_ok=True)

    parts = disk_parts(config, is_reordered=needs_reordering(config))
    files = _write_shards(weights, parts, directory, dtype=options["dtype"], limit_bytes=limit)
    stop = options.get("stop_token_ids", ())
    # config.json last: a torn export has none and does not load
    for name, content in (
        (GENERATION_FILE, _generation_config(stop)),
        (CONFIG_FILE, hugging_face_config(config, **options)),
    ):
        path = directory / name
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        files.append(path)
    return files


def import_hugging_face(
    directory: Path, config: ModelConfig, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Megatron weights by name from a folder of `export_hugging_face`, or a released M1 folder.

    Raises:
        BadInputError: the folder disagrees with `config`, a file is missing or malformed, a tensor
            is missing, unknown, of a wrong shape or not finite. Checked before tensors are read,
            except finiteness.
    """
    directory = Path(directory)
    described = _read_json(directory / CONFIG_FILE)
    parts = disk_parts(config, is_reordered=_is_reordered(described, config))
    _check_described(described, config)
    places = _tensor_places(directory)
    _check_names(set(places), set(parts))
    _check_shards(directory, places, parts)
    weights = {
        name: torch.empty(shape, dtype=dtype) for name, shape in weight_shapes(config).items()
    }
    for shard, names in _by_shard(places, parts).items():
        with _open(directory / shard) as opened:
            for name in names:
                tensor = opened.get_tensor(name)
                _check_finite(name, tensor)
                weights[parts[name].weight][parts[name].index] = tensor.to(dtype)
    return weights


def hugging_face_config(config: ModelConfig, **options: Unpack[ExportOptions]) -> dict[str, Any]:
    """The content of config.json."""
    kinds = {"lightning": "linear_attention", "softmax": "full_attention"}
    factors = {
        f"{part}_{name}_factor": value
        for part in ("full_attn", "linear_attn", "mlp")
        for name, value in (("alpha", config.alpha), ("beta", 1.0))
    }
    stop = options.get("stop_token_ids", ())
    return {
        "architectures": ["MiniMaxForCausalLM"],
        "model_type": "minimax",
        "dtype": DTYPE_NAMES[options["dtype"]],
        "attention_dropout": 0.0,
        "block_size": 256,
        "bos_token_id": None,
        "eos_token_id": list(stop) or None,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initial_std,
        "intermediate_size": config.expert_hidden_size,
        "layer_types": [kinds[config.layer_kind(layer)] for layer in range(config.num_layers)],
        "max_position_embeddings": options["window_tokens"],
        "num_attention_heads": config.num_heads,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_experts,
        "output_router_logits": False,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": _rope_parameters(config, options["rotary_base"]),
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocabulary_size,
        **factors,
    }


def _generation_config(stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Sampling of the paper's evaluations: temperature 1, top-p 0.95 (M1 section 6.1)."""
    content: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 0.95}
    if stop_token_ids:
        content |= {"eos_token_id": list(stop_token_ids), "pad_token_id": stop_token_ids[0]}
    return content


def _rope_parameters(config: ModelConfig, rotary_base: float) -> dict[str, Any]:
    """Frequencies base^(-2 j / R) written as transformers computes them, theta^(-2 j / W)."""
    if not needs_reordering(config):
        return {"rope_type": "default", "rope_theta": rotary_base}
    share = config.rotary_width / config.head_width
    if int(share * config.head_width // 2) != config.rotary_width // 2:
        share = math.nextafter(share, 1.0)  # transformers rounds the product down
    return {
        "rope_type": "proportional",
        "rope_theta": rotary_base ** (config.head_width / config.rotary_width),
        "partial_rotary_factor": share,
    }


def _check_expressible(config: ModelConfig) -> None:
    problems = []
    if not math.log2(config.num_heads).is_integer():
        problems.append(f"num_heads = {config.num_heads}; accepted: a power of two (slopes)")
    if config.lightning_norm_epsilon != TRANSFORMERS_LIGHTNING_EPSILON:
        problems.append(
            f"lightning_norm_epsilon = {config.lightning_norm_epsilon}; "
            f"accepted: {TRANSFORMERS_LIGHTNING_EPSILON}"
        )
    if config.head_width % 2:
        problems.append(f"head_width = {config.head_width}; accepted: an even number")
    if problems:
        raise BadInputError("transformers' MiniMax cannot express " + "; ".join(problems))


def _check_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> None:
    shapes = weight_shapes(config)
    _check_names(set(weights), set(shapes))
    for name, shape in shapes.items():
        _check_shape(name, tuple(weights[name].shape), shape)
        _check_finite(name, weights[name])


def _check_names(found: set[str], expected: set[str]) -> None:
    missing = sorted(expected - found)
    unknown = sorted(name for name in found - expected if not _BUFFER.fullmatch(name))
    if missing:
        raise BadInputError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if unknown:
        raise BadInputError(
            f"{len(unknown)} tensors are unknown, the first is {unknown[0][:200]!r}"
        )


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise BadInputError(f"{name} has shape {found}, expected {expected}")


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise BadInputError(f"{name} is of type {tensor.dtype}, expected a floating type")
    if not bool(torch.isfinite(tensor).all()):
        raise BadInputError(f"{name} holds values that are not finite")


def _write_shards(
    weights: Mapping[str, Tensor],
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
        tensors = {
            name: weights[parts[name].weight][parts[name].index]
            .detach()
            .to("cpu", types[name])
            .clone(memory_format=torch.contiguous_format)
            for name in names
        }
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


def _read_json(path: Path) -> dict[str, Any]:
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


def _is_reordered(described: Mapping[str, Any], config: ModelConfig) -> bool:
    """Whether q and k rows stand in transformers' pair order; the released M1 keeps its own."""
    rope = described.get("rope_parameters")
    kind = rope.get("rope_type") if isinstance(rope, dict) else None
    if kind == "proportional":
        return needs_reordering(config)
    if described.get("rotary_dim") == config.rotary_width or not needs_reordering(config):
        return False
    raise BadInputError(
        f"{CONFIG_FILE}: rope_parameters = {rope!r}, rotary_dim = {described.get('rotary_dim')!r}; "
        f"accepted: proportional, or rotary_dim {config.rotary_width}"
    )


def _check_described(described: Mapping[str, Any], config: ModelConfig) -> None:
    """The sizes that tensor shapes do not show must agree."""
    expected = {
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_width,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.num_layers,
    }
    for field, value in expected.items():
        if described.get(field) != value:
            raise BadInputError(
                f"{CONFIG_FILE}: {field} = {described.get(field)!r}, the model has {value}"
            )


def _tensor_places(directory: Path) -> dict[str, str]:
    """File name of each tensor; names that could leave the folder are refused."""
    if not (directory / INDEX_FILE).is_file():
        with _open(directory / SINGLE_FILE) as opened:
            return dict.fromkeys(opened.keys(), SINGLE_FILE)
    places = _read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(shard, str) and _SHARD_NAME.fullmatch(shard) for shard in places.values()
    ):
        raise BadInputError(f"{INDEX_FILE}: weight_map must map tensor names to plain file names")
    return places


def _by_shard(places: Mapping[str, str], parts: Mapping[str, Part]) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for name in parts:
        shards.setdefault(places[name], []).append(name)
    return shards


def _check_shards(directory: Path, places: Mapping[str, str], parts: Mapping[str, Part]) -> None:
    """Headers only: every shard opens and holds its tensors in the expected shapes."""
    for shard, names in _by_shard(places, parts).items():
        with _open(directory / shard) as opened:
            inside = set(opened.keys())
            for name in names:
                if name not in inside:
                    raise BadInputError(f"{shard} does not hold {name}, as {INDEX_FILE} says")
                _check_shape(name, tuple(opened.get_slice(name).get_shape()), parts[name].shape)


def _open(path: Path) -> Any:
    """A shard with a verified header; safetensors checks lengths, offsets and overlaps."""
    if not path.is_file():
        raise BadInputError(f"{path.name} is missing")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BadInputError(f"{path.name} is not a safetensors file: {error}") from None

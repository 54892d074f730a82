"""config.json of an exported folder, in both published layouts, and whether a found one fits.

Not here: tensors (`hf_weights`), which tensor is which weight (`hf_layout`).
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict, Unpack

import torch

from m1.infra.errors import BadInputError
from m1.model.config import ModelConfig
from m1.model.hf_layout import needs_reordering

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TRANSFORMERS_LIGHTNING_EPSILON = 1e-6  # a constant in transformers, not a configuration field
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_LAYER_TYPES = {"lightning": "linear_attention", "softmax": "full_attention"}
_ALPHA = re.compile(r"layernorm_\w+_alpha|\w+_alpha_factor")

Layout = Literal["transformers", "m1"]


class ExportOptions(TypedDict):
    """How to write the folder: type on disk, rotary base, longest window, size of one file."""

    dtype: torch.dtype
    rotary_base: float
    window_tokens: int
    max_shard_bytes: NotRequired[int]
    stop_token_ids: NotRequired[tuple[int, ...]]
    layout: NotRequired[Layout]


def describe(config: ModelConfig, **options: Unpack[ExportOptions]) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        BadInputError: the layout cannot express the configuration.
    """
    if options.get("layout", "transformers") == "m1":
        return _released_config(config, **options)
    _check_expressible(config)
    return _transformers_config(config, **options)


def _sizes(config: ModelConfig, **options: Unpack[ExportOptions]) -> dict[str, Any]:
    """What both layouts say in the same words."""
    return {
        "dtype": DTYPE_NAMES[options["dtype"]],
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": list(options.get("stop_token_ids", ())) or None,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initial_std,
        "intermediate_size": config.expert_hidden_size,
        "max_position_embeddings": options["window_tokens"],
        "num_attention_heads": config.num_heads,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_experts,
        "output_router_logits": False,
        "rms_norm_eps": config.norm_epsilon,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocabulary_size,
    }


def _released_config(config: ModelConfig, **options: Unpack[ExportOptions]) -> dict[str, Any]:
    """As MiniMax-M1's own config.json (facts sheet 1.1)."""
    factors = {
        f"layernorm_{part}_{name}": value
        for part in ("full_attention", "linear_attention", "mlp")
        for name, value in (("alpha", config.alpha), ("beta", 1.0))
    }
    return {
        **_sizes(config, **options),
        "architectures": ["MiniMaxM1ForCausalLM"],
        "model_type": "minimax_m1",
        "attn_type_list": [
            int(config.layer_kind(layer) == "softmax") for layer in range(config.num_layers)
        ],
        "postnorm": True,
        "rope_theta": options["rotary_base"],
        "rotary_dim": config.rotary_width,
        "shared_intermediate_size": 0,
        **factors,
    }


def _transformers_config(config: ModelConfig, **options: Unpack[ExportOptions]) -> dict[str, Any]:
    """As `MiniMaxConfig` of transformers."""
    factors = {
        f"{part}_{name}_factor": value
        for part in ("full_attn", "linear_attn", "mlp")
        for name, value in (("alpha", config.alpha), ("beta", 1.0))
    }
    return {
        **_sizes(config, **options),
        "architectures": ["MiniMaxForCausalLM"],
        "model_type": "minimax",
        "block_size": 256,
        "layer_types": [_LAYER_TYPES[config.layer_kind(i)] for i in range(config.num_layers)],
        "rope_parameters": _rope_parameters(config, options["rotary_base"]),
        **factors,
    }


def generation_config(stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
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


def is_reordered(described: Mapping[str, Any], config: ModelConfig) -> bool:
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


def check_described(described: Mapping[str, Any], config: ModelConfig) -> None:
    """What tensor shapes do not show must agree, where the folder says it.

    Raises:
        BadInputError: names the field, what the folder says and what the model has.
    """
    kinds = [config.layer_kind(layer) for layer in range(config.num_layers)]
    always: dict[str, Any] = {
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_width,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.num_layers,
    }
    optional: dict[str, Any] = {
        "attn_type_list": [int(kind == "softmax") for kind in kinds],
        "layer_types": [_LAYER_TYPES[kind] for kind in kinds],
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": False,
    }
    for field, value in (always | {k: v for k, v in optional.items() if k in described}).items():
        _check_field(field, described.get(field), described.get(field) == value, value)
    for field, found in described.items():
        if _ALPHA.fullmatch(field):
            is_equal = isinstance(found, int | float) and math.isclose(
                found, config.alpha, rel_tol=1e-6
            )
            _check_field(field, found, is_equal, config.alpha)


def _check_field(field: str, found: object, is_equal: bool, expected: object) -> None:
    if not is_equal:
        raise BadInputError(
            f"{CONFIG_FILE}: {field} = {str(found)[:200]}, the model has {expected}"
        )

"""Which part of which Megatron weight each tensor of a Hugging Face folder is.

One table for both directions. Not here: files, types and checks (`hf_weights`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m1.model.config import ModelConfig
from m1.model.decode_network import weight_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor on disk: which part of which Megatron weight it is."""

    weight: str
    index: Any  # what stands between the brackets of weight[...]
    shape: tuple[int, ...]


def needs_reordering(config: ModelConfig) -> bool:
    """Whether only a part of each head is rotated, which transformers pairs differently."""
    return config.rotary_width != config.head_width


def disk_parts(config: ModelConfig, *, is_reordered: bool) -> dict[str, Part]:
    """Every tensor on disk, by the names of the released checkpoint (facts sheet section 1.7)."""
    shapes = weight_shapes(config)
    parts = {
        "model.embed_tokens.weight": _whole("embedding.word_embeddings.weight", shapes),
        "model.norm.weight": _whole("decoder.final_layernorm.weight", shapes),
        "lm_head.weight": _whole("output_layer.weight", shapes),
    }
    softmax = _grouped_rows(config, is_reordered)
    for layer in range(config.num_layers):
        ours, disk = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        for theirs, name in (
            ("input_layernorm.weight", "input_layernorm.weight"),
            ("post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
            ("block_sparse_moe.gate.weight", "mlp.router.weight"),
        ):
            parts[disk + theirs] = _whole(ours + name, shapes)
        parts |= _expert_parts(config, ours, disk)
        if config.layer_kind(layer) == "softmax":
            parts |= _softmax_parts(config, ours, disk, softmax)
        else:
            parts |= _lightning_parts(ours, disk, shapes)
    return parts


def _whole(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Part:
    return Part(weight=name, index=..., shape=shapes[name])


def _lightning_parts(
    ours: str, disk: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Part]]:
    for theirs, name in (
        ("qkv_proj.weight", "qkv_projection.weight"),
        ("output_gate.weight", "gate_projection.weight"),
        ("out_proj.weight", "out_projection.weight"),
        ("norm.weight", "norm_weight"),
    ):
        yield f"{disk}self_attn.{theirs}", _whole(f"{ours}self_attention.{name}", shapes)


def _softmax_parts(
    config: ModelConfig, ours: str, disk: str, rows: Mapping[str, Tensor]
) -> Iterator[tuple[str, Part]]:
    for letter, index in rows.items():
        yield (
            f"{disk}self_attn.{letter}_proj.weight",
            Part(
                weight=f"{ours}self_attention.linear_qkv.weight",
                index=index,
                shape=(len(index), config.hidden_size),
            ),
        )
    yield (
        f"{disk}self_attn.o_proj.weight",
        Part(
            weight=f"{ours}self_attention.linear_proj.weight",
            index=...,
            shape=(config.hidden_size, config.attention_width),
        ),
    )


def _expert_parts(config: ModelConfig, ours: str, disk: str) -> Iterator[tuple[str, Part]]:
    inner, hidden = config.expert_hidden_size, config.hidden_size
    gate_up, down = f"{ours}mlp.experts.gate_up_weight", f"{ours}mlp.experts.down_weight"
    for expert in range(config.num_experts):
        prefix = f"{disk}block_sparse_moe.experts.{expert}."
        gate, up = (expert, slice(0, inner)), (expert, slice(inner, 2 * inner))
        yield prefix + "w1.weight", Part(weight=gate_up, index=gate, shape=(inner, hidden))
        yield prefix + "w3.weight", Part(weight=gate_up, index=up, shape=(inner, hidden))
    for expert in range(config.num_experts):  # apart: parts of one weight stand together
        name = f"{disk}block_sparse_moe.experts.{expert}.w2.weight"
        yield name, Part(weight=down, index=expert, shape=(hidden, inner))


def _grouped_rows(config: ModelConfig, is_reordered: bool) -> dict[str, Tensor]:
    """Rows of Megatron's linear_qkv (per group [q ... q | k | v]) that make q, k and v on disk."""
    groups, width = config.num_key_value_heads, config.head_width
    per_group = config.num_heads // groups
    rows = torch.arange(groups * (per_group + 2) * width).view(groups, per_group + 2, width)
    order = _pair_order(config) if is_reordered else torch.arange(width)
    return {
        "q": rows[:, :per_group, order].flatten(),
        "k": rows[:, per_group, order].flatten(),
        "v": rows[:, per_group + 1].flatten(),
    }


def _pair_order(config: ModelConfig) -> Tensor:
    """Order of a head's elements in which element j is paired with j + W / 2.

    Ours pairs j with j + R / 2 for j < R / 2; what is not rotated fills up both halves.
    """
    half = config.rotary_width // 2
    passed = torch.arange(config.rotary_width, config.head_width).view(2, -1)
    turned = torch.arange(config.rotary_width).view(2, half)
    return torch.cat([turned, passed], 1).flatten()

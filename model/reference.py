"""The model as slow, obvious arithmetic in plain torch: the truth that tests compare with.

Not for training or serving: lightning attention goes token by token, softmax attention builds the
whole mask, experts are looped. Any floating type; tests use float64. Weights carry the names of
the single-rank Megatron model (see `m1.model.spec`).

Shape letters: B batch, T tokens, H query heads, G key/value heads, W head width, D hidden,
R rows (tokens of all batch rows), V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from m1.model.config import ModelConfig
from m1.model.slopes import slopes


def root_mean_square_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`x` scaled to unit root mean square over its last axis, then by `weight`."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


def recurrent_lightning_attention(
    q_BTHW: Tensor,
    k_BTHW: Tensor,
    v_BTHW: Tensor,
    slopes_H: Tensor,
    *,
    document_ids_BT: Tensor | None = None,
    initial_state_BHWW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decayed linear attention, one token after the other.

    A token of another document than the one before it starts from an empty state; the initial
    state belongs to the document of the first token. Source: facts sheet section 1.3.

    Returns:
        Output [B, T, H, W] and the state [B, H, W, W] after the last token.
    """
    batch, length, heads, width = q_BTHW.shape
    state = q_BTHW.new_zeros(batch, heads, width, width)
    if initial_state_BHWW is not None:
        state = initial_state_BHWW.to(q_BTHW.dtype)
    decay_H11 = torch.exp(-slopes_H.to(q_BTHW))[:, None, None]
    outputs = []
    for token in range(length):
        if document_ids_BT is not None and token > 0:
            same_B = document_ids_BT[:, token] == document_ids_BT[:, token - 1]
            state = torch.where(same_B[:, None, None, None], state, torch.zeros_like(state))
        added = torch.einsum("bhk,bhv->bhkv", k_BTHW[:, token], v_BTHW[:, token])
        state = decay_H11 * state + added
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_BTHW[:, token], state))
    return torch.stack(outputs, 1), state


def rotate(x_BTHW: Tensor, *, rotary_width: int, rotary_base: float) -> Tensor:
    """Rotate the first `rotary_width` elements of each head by position; the rest pass through.

    Element j is paired with element j + rotary_width / 2 (facts sheet section 1.4).
    """
    half = rotary_width // 2
    exponent = torch.arange(half, dtype=torch.float64, device=x_BTHW.device) / half
    positions = torch.arange(x_BTHW.shape[1], dtype=torch.float64, device=x_BTHW.device)
    angle_TJ = positions[:, None] * rotary_base ** (-exponent)
    cos = angle_TJ.cos().to(x_BTHW.dtype)[None, :, None]
    sin = angle_TJ.sin().to(x_BTHW.dtype)[None, :, None]
    first, second = x_BTHW[..., :half], x_BTHW[..., half:rotary_width]
    rotated = [first * cos - second * sin, second * cos + first * sin, x_BTHW[..., rotary_width:]]
    return torch.cat(rotated, -1)


def masked_softmax_attention(
    q_BTHW: Tensor, k_BTGW: Tensor, v_BTGW: Tensor, document_ids_BT: Tensor | None = None
) -> Tensor:
    """Causal attention within documents with the whole mask written out, [B, T, H, W]."""
    length, heads, width = q_BTHW.shape[1:]
    copies = heads // k_BTGW.shape[2]
    k_BTHW = k_BTGW.repeat_interleave(copies, 2)
    v_BTHW = v_BTGW.repeat_interleave(copies, 2)
    scores = torch.einsum("bqhw,bkhw->bhqk", q_BTHW, k_BTHW) * width**-0.5
    allowed = torch.ones(length, length, dtype=torch.bool, device=q_BTHW.device).tril()[None]
    if document_ids_BT is not None:
        allowed = allowed & (document_ids_BT[:, :, None] == document_ids_BT[:, None, :])
    scores = scores.masked_fill(~allowed[:, None], float("-inf"))
    return torch.einsum("bhqk,bkhw->bqhw", scores.softmax(-1), v_BTHW)


def route(x_RD: Tensor, router_ED: Tensor, experts_per_token: int) -> tuple[Tensor, Tensor]:
    """Top experts by logit, softmax over the chosen: (probabilities, experts), both [R, k]."""
    logits_Rk, chosen_Rk = (x_RD @ router_ED.T).topk(experts_per_token, -1)
    return logits_Rk.softmax(-1), chosen_Rk


def experts(
    x_RD: Tensor, probabilities_Rk: Tensor, chosen_Rk: Tensor, weights: tuple[Tensor, Tensor]
) -> Tensor:
    """Sum of the chosen experts' SwiGLU outputs by probability, [R, D]; an explicit loop."""
    gate_up_EFD, down_EDF = weights
    output = torch.zeros_like(x_RD)
    for expert in range(gate_up_EFD.shape[0]):
        gate, up = (x_RD @ gate_up_EFD[expert].T).chunk(2, -1)
        answer = (functional.silu(gate) * up) @ down_EDF[expert].T
        share = (probabilities_Rk * (chosen_Rk == expert)).sum(-1, keepdim=True)
        output = output + share * answer
    return output


def _lightning_layer(
    x_BTD: Tensor,
    weights: Mapping[str, Tensor],
    layer: int,
    config: ModelConfig,
    document_ids_BT: Tensor | None,
) -> Tensor:
    prefix = f"decoder.layers.{layer}.self_attention."
    batch, length, _ = x_BTD.shape
    qkv = functional.silu(x_BTD @ weights[prefix + "qkv_projection.weight"].T)
    q, k, v = qkv.view(batch, length, config.num_heads, 3 * config.head_width).chunk(3, -1)
    output, _ = recurrent_lightning_attention(
        q, k, v, slopes(config, layer), document_ids_BT=document_ids_BT
    )
    normed = root_mean_square_norm(
        output.flatten(2), weights[prefix + "norm_weight"], config.lightning_norm_epsilon
    )
    gate = torch.sigmoid(x_BTD @ weights[prefix + "gate_projection.weight"].T)
    return (gate * normed) @ weights[prefix + "out_projection.weight"].T


def split_grouped_qkv(qkv: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Megatron's [..., G * (H/G + 2) * W] as q [..., H, W], k [..., G, W], v [..., G, W]."""
    groups, width = config.num_key_value_heads, config.head_width
    per_group = config.num_heads // groups
    grouped = torch.unflatten(qkv, -1, (groups, per_group + 2, width))
    q = grouped[..., :per_group, :].flatten(-3, -2)
    return q, grouped[..., per_group, :], grouped[..., per_group + 1, :]


def _softmax_layer(
    x_BTD: Tensor,
    weights: Mapping[str, Tensor],
    layer: int,
    config: ModelConfig,
    document_ids_BT: Tensor | None,
) -> Tensor:
    prefix = f"decoder.layers.{layer}.self_attention."
    q, k, v = split_grouped_qkv(x_BTD @ weights[prefix + "linear_qkv.weight"].T, config)
    width, base = config.rotary_width, config.rotary_base
    q = rotate(q, rotary_width=width, rotary_base=base)
    k = rotate(k, rotary_width=width, rotary_base=base)
    output = masked_softmax_attention(q, k, v, document_ids_BT)
    return output.flatten(2) @ weights[prefix + "linear_proj.weight"].T


def _experts_layer(
    x_BTD: Tensor, weights: Mapping[str, Tensor], layer: int, config: ModelConfig
) -> Tensor:
    prefix = f"decoder.layers.{layer}.mlp."
    rows = x_BTD.flatten(0, 1)
    chosen = route(rows, weights[prefix + "router.weight"].to(rows), config.experts_per_token)
    stacked = (weights[prefix + "experts.gate_up_weight"], weights[prefix + "experts.down_weight"])
    return experts(rows, *chosen, stacked).view_as(x_BTD)


def reference_logits(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    tokens_BT: Tensor,
    *,
    document_ids_BT: Tensor | None = None,
    rotary_base: float | None = None,
) -> Tensor:
    """Logits [B, T, V] of the whole model, in the type of the weights.

    Positions count over the row, also across documents: rotary attention only sees distances.

    Args:
        weights: the single-rank Megatron names.
        config: sizes; must agree with the weights.
        tokens_BT: token ids.
        document_ids_BT: tokens see only their own document; contiguous along T.
        rotary_base: replaces `config.rotary_base`, for a model after context extension.
    """
    if rotary_base is not None:
        config = config.model_copy(update={"rotary_base": rotary_base})
    h = weights["embedding.word_embeddings.weight"][tokens_BT]
    for layer in range(config.num_layers):
        prefix = f"decoder.layers.{layer}."
        x = root_mean_square_norm(
            h, weights[prefix + "input_layernorm.weight"], config.norm_epsilon
        )
        is_softmax = config.layer_kind(layer) == "softmax"
        attend = _softmax_layer if is_softmax else _lightning_layer
        h = config.alpha * x + attend(x, weights, layer, config, document_ids_BT)
        gain = weights[prefix + "pre_mlp_layernorm.weight"]
        x = root_mean_square_norm(h, gain, config.norm_epsilon)
        h = config.alpha * x + _experts_layer(x, weights, layer, config)
    h = root_mean_square_norm(h, weights["decoder.final_layernorm.weight"], config.norm_epsilon)
    return h @ weights["output_layer.weight"].T

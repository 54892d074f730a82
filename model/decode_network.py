"""The network as the sampler runs it: a few tokens per row, on top of what each row has seen.

Works on the trainer's own weight tensors (so it sees every update) with the arithmetic of the
training forward: fp32 lightning state, fp32 router, fp32 logits. Not here: which rows are active
(`decode`) and how a token is chosen (`sampling`).

Shape letters: B rows, C new tokens per row, T cached tokens, H query heads, G key/value heads,
W head width, D hidden, E experts, F expert inner width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from m1.model.config import ModelConfig
from m1.model.head_loss import exact_logits
from m1.model.slopes import slopes

# ours: up to this size computing every expert in one product beats sorting rows by expert
DENSE_EXPERTS = 8
DENSE_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """New tokens of consecutive rows of the state.

    Args:
        first_row: first row; the chunk is for rows first_row .. first_row + B - 1.
        positions_BC: position of each token in its row.
        counts_B: tokens that are real, the rest is padding on the right; None if all are.
        cached_tokens: the largest position of the chunk plus one.
    """

    first_row: int
    positions_BC: Tensor
    counts_B: Tensor | None
    cached_tokens: int

    @property
    def rows(self) -> slice:
        """The rows of the state that the chunk belongs to."""
        return slice(self.first_row, self.first_row + self.positions_BC.shape[0])


class RowState:
    """What the network remembers of each row: lightning states, keys and values."""

    def __init__(self, config: ModelConfig, *, rows: int, weight: Tensor) -> None:
        self.config = config
        width, groups = config.head_width, config.num_key_value_heads
        self.lightning: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        for layer in range(config.num_layers):
            if config.layer_kind(layer) == "lightning":
                # fp32: a bf16 state cost MiniMax lost characters and repetition (facts 6.3)
                self.lightning[layer] = torch.zeros(
                    rows, config.num_heads, width, width, device=weight.device
                )
            else:
                self.keys[layer] = weight.new_zeros(rows, groups, 0, width)
                self.values[layer] = weight.new_zeros(rows, groups, 0, width)

    def reserve(self, cached_tokens: int) -> None:
        """Make room for `cached_tokens` per row; grows by doubling."""
        for cache in (self.keys, self.values):
            for layer, tensor in cache.items():
                have = tensor.shape[2]
                if have < cached_tokens:
                    room = max(cached_tokens, 2 * have, 64) - have
                    cache[layer] = functional.pad(tensor, (0, 0, 0, room))

    def clear(self, rows: slice) -> None:
        """Forget these rows. Keys and values need nothing: they are overwritten before use."""
        for state in self.lightning.values():
            state[rows] = 0

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows `source` over rows `target`."""
        for cache in (self.lightning, self.keys, self.values):
            for tensor in cache.values():
                tensor[target] = tensor[source]


class DecodeNetwork:
    """One pass over the weights as they are now; make a new one after the weights changed.

    Raises:
        ValueError: a weight is missing or has not the shape of a single-rank model.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], config: ModelConfig, *, rotary_base: float
    ) -> None:
        check_weights(weights, config)
        self.config = config
        self.weights = {name: tensor.detach() for name, tensor in weights.items()}
        self.head_VD = self.weights["output_layer.weight"]
        device = self.head_VD.device
        half = config.rotary_width // 2
        exponent = torch.arange(half, dtype=torch.float32, device=device) / half
        self.frequencies_J = 1.0 / rotary_base**exponent
        self.slopes = [slopes(config, layer).to(device) for layer in range(config.num_layers)]
        self.decays = [torch.exp(-slope)[:, None, None] for slope in self.slopes]
        self.routers = [
            self._weight(layer, "mlp.router.weight").float() for layer in range(config.num_layers)
        ]
        self.is_dense = config.num_experts <= DENSE_EXPERTS
        self.down_stacked = {}
        if self.is_dense:  # [E F, D]: the sum over experts happens inside one product
            for layer in range(config.num_layers):
                down = self._weight(layer, "mlp.experts.down_weight")
                self.down_stacked[layer] = down.transpose(1, 2).flatten(0, 1).contiguous()

    def _weight(self, layer: int, name: str) -> Tensor:
        return self.weights[f"decoder.layers.{layer}.{name}"]

    def hidden(self, tokens_BC: Tensor, chunk: Chunk, state: RowState) -> Tensor:
        """Final hidden states [B, C, D]; `state` then includes the chunk's real tokens."""
        config = self.config
        state.reserve(chunk.cached_tokens)
        rotation = self._rotation(chunk.positions_BC)
        allowed = self._allowed(chunk)
        h = functional.embedding(tokens_BC, self.weights["embedding.word_embeddings.weight"])
        for layer in range(config.num_layers):
            x = _norm(h, self._weight(layer, "input_layernorm.weight"), config.norm_epsilon)
            if layer in state.lightning:
                attended = self._lightning(x, layer, chunk, state.lightning[layer])
            else:
                attended = self._softmax(x, layer, chunk, state, (rotation, allowed))
            h = attended.add_(x, alpha=config.alpha)
            x = _norm(h, self._weight(layer, "pre_mlp_layernorm.weight"), config.norm_epsilon)
            h = self._experts(x.flatten(0, 1), layer).view_as(x).add_(x, alpha=config.alpha)
        return _norm(h, self.weights["decoder.final_layernorm.weight"], config.norm_epsilon)

    def logits(self, hidden_BD: Tensor) -> Tensor:
        """Fp32 logits [B, V] (M1 section 3.2: the head in fp32), by training's own product."""
        return exact_logits(hidden_BD, self.head_VD)

    def _rotation(self, positions_BC: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions_BC[..., None, None] * self.frequencies_J
        return angle.cos(), angle.sin()

    def _allowed(self, chunk: Chunk) -> Tensor:
        """[B, 1, C * H/G, T]: cached positions each query may see, query heads innermost."""
        cached = torch.arange(chunk.cached_tokens, device=chunk.positions_BC.device)
        allowed_BCT = cached <= chunk.positions_BC[..., None]
        copies = self.config.num_heads // self.config.num_key_value_heads
        return allowed_BCT.repeat_interleave(copies, 1)[:, None]

    def _lightning(self, x_BCD: Tensor, layer: int, chunk: Chunk, state: Tensor) -> Tensor:
        qkv = functional.linear(x_BCD, self._weight(layer, "self_attention.qkv_projection.weight"))
        qkv = torch.unflatten(functional.silu(qkv), -1, (self.config.num_heads, -1))
        q, k, v = qkv.transpose(1, 2).float().chunk(3, -1)  # [B, H, C, W]
        rows = state[chunk.rows]
        if q.shape[2] == 1 and chunk.counts_B is None:
            output = _one_token((q, k, v), self.decays[layer], rows)
        else:
            output = _one_chunk((q, k, v), self.slopes[layer], rows, chunk.counts_B)
        flat = output.transpose(1, 2).flatten(2).to(x_BCD.dtype)
        normed = _norm(
            flat,
            self._weight(layer, "self_attention.norm_weight"),
            self.config.lightning_norm_epsilon,
        )
        gate = functional.linear(
            x_BCD, self._weight(layer, "self_attention.gate_projection.weight")
        )
        return functional.linear(
            gate.sigmoid_().mul_(normed),
            self._weight(layer, "self_attention.out_projection.weight"),
        )

    def _softmax(
        self,
        x_BCD: Tensor,
        layer: int,
        chunk: Chunk,
        state: RowState,
        positional: tuple[tuple[Tensor, Tensor], Tensor],
    ) -> Tensor:
        groups, width = self.config.num_key_value_heads, self.config.head_width
        (cos, sin), allowed = positional
        qkv = functional.linear(x_BCD, self._weight(layer, "self_attention.linear_qkv.weight"))
        qkv = torch.unflatten(qkv, -1, (groups, -1, width))  # [B, C, G, H/G + 2, W]
        turned = _rotate(qkv[..., :-1, :].flatten(2, 3), cos, sin).view_as(qkv[..., :-1, :])
        rows = torch.arange(chunk.rows.start, chunk.rows.stop, device=x_BCD.device)[:, None]
        state.keys[layer][rows, :, chunk.positions_BC] = turned[..., -1, :]
        state.values[layer][rows, :, chunk.positions_BC] = qkv[..., -1, :]
        # the query heads of a group become query positions: no copy of keys per head
        q = turned[..., :-1, :].permute(0, 2, 1, 3, 4).flatten(2, 3)  # [B, G, C * H/G, W]
        output = functional.scaled_dot_product_attention(
            q,
            state.keys[layer][chunk.rows, :, : chunk.cached_tokens],
            state.values[layer][chunk.rows, :, : chunk.cached_tokens],
            attn_mask=allowed,
        )
        output = torch.unflatten(output, 2, (x_BCD.shape[1], -1))
        output = output.permute(0, 2, 1, 3, 4).flatten(2)
        return functional.linear(output, self._weight(layer, "self_attention.linear_proj.weight"))

    def _experts(self, x_RD: Tensor, layer: int) -> Tensor:
        logits = functional.linear(x_RD.float(), self.routers[layer])
        best_Rk, chosen_Rk = logits.topk(self.config.experts_per_token, -1)
        probabilities_Rk = best_Rk.softmax(-1)
        if self.is_dense and x_RD.shape[0] <= DENSE_ROWS:
            return self._every_expert(x_RD, layer, probabilities_Rk, chosen_Rk)
        return self._chosen_experts(x_RD, layer, probabilities_Rk, chosen_Rk)

    def _every_expert(
        self, x_RD: Tensor, layer: int, probabilities_Rk: Tensor, chosen_Rk: Tensor
    ) -> Tensor:
        gate_up = self._weight(layer, "mlp.experts.gate_up_weight")
        share_RE = probabilities_Rk.new_zeros(x_RD.shape[0], gate_up.shape[0])
        share_RE = share_RE.scatter_(1, chosen_Rk, probabilities_Rk).to(x_RD.dtype)
        both = functional.linear(x_RD, gate_up.flatten(0, 1))
        both = torch.unflatten(both, -1, (-1, 2, gate_up.shape[1] // 2))
        inner = functional.silu(both[:, :, 0]).mul_(both[:, :, 1]).mul_(share_RE[..., None])
        return inner.flatten(1) @ self.down_stacked[layer]

    def _chosen_experts(
        self, x_RD: Tensor, layer: int, probabilities_Rk: Tensor, chosen_Rk: Tensor
    ) -> Tensor:
        gate_up = self._weight(layer, "mlp.experts.gate_up_weight")
        down = self._weight(layer, "mlp.experts.down_weight")
        output = torch.zeros_like(x_RD)
        for expert in range(gate_up.shape[0]):
            row, place = (chosen_Rk == expert).nonzero(as_tuple=True)
            if not row.numel():
                continue
            gate, up = functional.linear(x_RD[row], gate_up[expert]).chunk(2, -1)
            answer = functional.linear(functional.silu(gate) * up, down[expert])
            output.index_add_(0, row, answer * probabilities_Rk[row, place, None].to(answer.dtype))
        return output


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    if x.dtype is torch.float32:
        return functional.rms_norm(x, weight.shape, weight, epsilon)
    return functional.rms_norm(x.float(), weight.shape, None, epsilon).to(x.dtype) * weight


def _rotate(x_BCHW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading elements by [B, C, 1, J] angles; pairs are (j, j + J)."""
    half = cos.shape[-1]
    first, second = x_BCHW[..., :half].float(), x_BCHW[..., half : 2 * half].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([turned.to(x_BCHW.dtype), x_BCHW[..., 2 * half :]], -1)


def _one_token(qkv: tuple[Tensor, Tensor, Tensor], decay_H11: Tensor, state: Tensor) -> Tensor:
    """The recurrence itself, [B, H, 1, W]; updates `state` in place."""
    q, k, v = qkv
    state.mul_(decay_H11)
    flat = state.flatten(0, 1)
    flat.baddbmm_(k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1))
    return torch.bmm(q.flatten(0, 1), flat).view_as(q)


def _one_chunk(
    qkv: tuple[Tensor, Tensor, Tensor], slopes_H: Tensor, state: Tensor, counts_B: Tensor | None
) -> Tensor:
    """The block form for C tokens, [B, H, C, W]; updates `state` in place by the real tokens."""
    q, k, v = qkv
    size = q.shape[2]
    place = torch.arange(size, device=q.device, dtype=torch.float32)
    distance = place[:, None] - place
    decay_HCC = torch.exp(-slopes_H[:, None, None] * distance.clamp(min=0)) * (distance >= 0)
    output = ((q @ k.transpose(-1, -2)) * decay_HCC) @ v
    output += (q * torch.exp(-slopes_H[:, None] * (place + 1))[..., None]) @ state
    counts = torch.full((q.shape[0],), size, device=q.device) if counts_B is None else counts_B
    left_BC = counts[:, None] - 1 - place  # negative for padding
    key_decay = (
        torch.exp(-slopes_H[:, None] * left_BC.clamp(min=0)[:, None]) * (left_BC >= 0)[:, None]
    )
    state.mul_(torch.exp(-slopes_H * counts[:, None])[..., None, None])
    state += (k * key_decay[..., None]).transpose(-1, -2) @ v
    return output


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of the single-rank model with its shape."""
    hidden, width, inner = config.hidden_size, config.attention_width, config.expert_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (config.vocabulary_size, hidden),
        "decoder.final_layernorm.weight": (hidden,),
        "output_layer.weight": (config.vocabulary_size, hidden),
    }
    grouped = (config.num_heads + 2 * config.num_key_value_heads) * config.head_width
    attention: dict[str, dict[str, tuple[int, ...]]] = {
        "lightning": {
            "qkv_projection.weight": (3 * width, hidden),
            "gate_projection.weight": (width, hidden),
            "out_projection.weight": (hidden, width),
            "norm_weight": (width,),
        },
        "softmax": {
            "linear_qkv.weight": (grouped, hidden),
            "linear_proj.weight": (hidden, width),
        },
    }
    for layer in range(config.num_layers):
        prefix = f"decoder.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "pre_mlp_layernorm.weight"] = (hidden,)
        shapes[prefix + "mlp.router.weight"] = (config.num_experts, hidden)
        shapes[prefix + "mlp.experts.gate_up_weight"] = (config.num_experts, 2 * inner, hidden)
        shapes[prefix + "mlp.experts.down_weight"] = (config.num_experts, hidden, inner)
        for name, shape in attention[config.layer_kind(layer)].items():
            shapes[f"{prefix}self_attention.{name}"] = shape
    return shapes


def check_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Refuse anything but the weights of the whole model on one rank.

    Raises:
        ValueError: names the first missing weight or wrong shape.
    """
    for name, shape in weight_shapes(config).items():
        if name not in weights:
            raise ValueError(f"weight {name} is missing; expected a whole model of shape {shape}")
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"weight {name} has shape {tuple(weights[name].shape)}, expected {shape}"
            )

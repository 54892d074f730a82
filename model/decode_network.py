"""The network as the sampler runs it: a few tokens per row, on top of what each row has seen.

Works on the trainer's own weight tensors (so it sees every update) with the arithmetic of the
training forward: fp32 lightning state, fp32 router, fp32 logits. Tokens of all rows are packed:
only attention knows of rows, everything else sees one list of tokens.

Not here: what is remembered (`decode_state`), which rows are active (`decode_engine`) and how a
token is chosen (`sampling`).

Shape letters: B rows, C most new tokens of a row, R new tokens of all rows, T cached tokens,
H query heads, G key/value heads, W head width, D hidden, E experts, k experts per token, F expert
inner width, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from m1.model.config import ModelConfig
from m1.model.decode_state import Chunk, RowState
from m1.model.head_loss import exact_logits
from m1.model.slopes import slopes

Positional = tuple[tuple[Tensor, Tensor], Tensor]  # cosines and sines, allowed cache places


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
        self.device = self.head_VD.device
        half = config.rotary_width // 2
        exponent = torch.arange(half, dtype=torch.float32, device=self.device) / half
        self.frequencies_J = 1.0 / rotary_base**exponent
        self.slopes = [slopes(config, layer).to(self.device) for layer in range(config.num_layers)]
        self.decays = [torch.exp(-slope)[:, None, None] for slope in self.slopes]
        self.routers = [
            self._weight(layer, "mlp.router.weight").float() for layer in range(config.num_layers)
        ]

    def _weight(self, layer: int, name: str) -> Tensor:
        return self.weights[f"decoder.layers.{layer}.{name}"]

    def hidden(self, tokens_R: Tensor, chunks: Sequence[Chunk], state: RowState) -> Tensor:
        """Final hidden states [R, D] of the chunks' tokens; `state` then includes them."""
        config = self.config
        state.reserve(max(chunk.cached_tokens for chunk in chunks))
        positional = [self._positional(chunk) for chunk in chunks] if state.keys else []
        h = functional.embedding(tokens_R, self.weights["embedding.word_embeddings.weight"])
        for layer in range(config.num_layers):
            x = _norm(h, self._weight(layer, "input_layernorm.weight"), config.norm_epsilon)
            if layer in state.lightning:
                attended = self._lightning(x, layer, chunks, state.lightning[layer])
            else:
                attended = self._softmax(x, layer, chunks, (state, positional))
            h = attended.add_(x, alpha=config.alpha)
            x = _norm(h, self._weight(layer, "pre_mlp_layernorm.weight"), config.norm_epsilon)
            h = self._experts(x, layer).add_(x, alpha=config.alpha)
        return _norm(h, self.weights["decoder.final_layernorm.weight"], config.norm_epsilon)

    def logits(self, hidden_xD: Tensor) -> Tensor:
        """Fp32 logits [..., V] (M1 section 3.2: the head in fp32), by training's own product."""
        logits_RV = exact_logits(hidden_xD.flatten(0, -2), self.head_VD)
        return logits_RV.view(*hidden_xD.shape[:-1], -1)

    def _lightning(
        self, x_RD: Tensor, layer: int, chunks: Sequence[Chunk], state: Tensor
    ) -> Tensor:
        qkv = functional.linear(x_RD, self._weight(layer, "self_attention.qkv_projection.weight"))
        qkv = functional.silu(qkv).unflatten(-1, (self.config.num_heads, -1)).float()
        pieces = [
            self._lightning_rows(piece, layer, chunk, state[chunk.rows])
            for piece, chunk in _by_chunk(qkv, chunks)
        ]
        normed = _norm(
            _joined(pieces).flatten(1).to(x_RD.dtype),
            self._weight(layer, "self_attention.norm_weight"),
            self.config.lightning_norm_epsilon,
        )
        gate = functional.linear(x_RD, self._weight(layer, "self_attention.gate_projection.weight"))
        return functional.linear(
            gate.sigmoid_().mul_(normed),
            self._weight(layer, "self_attention.out_projection.weight"),
        )

    def _lightning_rows(
        self, qkv_RHW: Tensor, layer: int, chunk: Chunk, state_BHWW: Tensor
    ) -> Tensor:
        """[R, H, W] of one chunk; `state_BHWW` is updated in place."""
        if chunk.is_single:
            q, k, v = qkv_RHW.chunk(3, -1)
            return _one_token((q, k, v), self.decays[layer], state_BHWW)
        q, k, v = chunk.padded(qkv_RHW).transpose(1, 2).chunk(3, -1)  # [B, H, C, W]
        counts_B = None if chunk.slots_R is None else chunk.counts_B
        output = _one_chunk((q, k, v), self.slopes[layer], state_BHWW, counts_B)
        return chunk.packed(output.transpose(1, 2))

    def _positional(self, chunk: Chunk) -> Positional:
        """Rotation of each token, and [B, 1, C * H/G, T]: cache places each query may see."""
        angle = chunk.positions_R[:, None, None] * self.frequencies_J
        cached = torch.arange(chunk.cached_tokens, device=self.device)
        allowed_BCT = chunk.padded(cached <= chunk.positions_R[:, None])
        if not chunk.is_single:  # a query of its own per head of a group, heads innermost
            copies = self.config.num_heads // self.config.num_key_value_heads
            # padded queries see the first place: a softmax over nothing is not a number
            allowed_BCT[..., 0] = True
            allowed_BCT = allowed_BCT.repeat_interleave(copies, 1)
        return (angle.cos(), angle.sin()), allowed_BCT[:, None]

    def _softmax(
        self,
        x_RD: Tensor,
        layer: int,
        chunks: Sequence[Chunk],
        state_and_positional: tuple[RowState, Sequence[Positional]],
    ) -> Tensor:
        state, positional = state_and_positional
        groups, width = self.config.num_key_value_heads, self.config.head_width
        qkv = functional.linear(x_RD, self._weight(layer, "self_attention.linear_qkv.weight"))
        qkv = qkv.unflatten(-1, (groups, -1, width))  # [R, G, H/G + 2, W]
        cache = (state.keys[layer], state.values[layer])
        pieces = [
            _softmax_rows(piece, chunk, cache, where)
            for (piece, chunk), where in zip(_by_chunk(qkv, chunks), positional, strict=True)
        ]
        weight = self._weight(layer, "self_attention.linear_proj.weight")
        return functional.linear(_joined(pieces), weight)

    def _experts(self, x_RD: Tensor, layer: int) -> Tensor:
        """Tokens sorted by expert: each chosen expert once, over its own tokens only."""
        logits = functional.linear(x_RD.float(), self.routers[layer])
        best_Rk, chosen_Rk = logits.topk(self.config.experts_per_token, -1)
        probabilities_Rk = best_Rk.softmax(-1)
        gate_up = self._weight(layer, "mlp.experts.gate_up_weight")
        down = self._weight(layer, "mlp.experts.down_weight")
        flat = chosen_Rk.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()
        copies = x_RD.index_select(0, order.div(chosen_Rk.shape[1], rounding_mode="floor"))
        answers = torch.empty_like(copies)
        for expert, (rows, answer) in enumerate(
            zip(copies.split(counts), answers.split(counts), strict=True)
        ):
            if rows.shape[0]:
                gate, up = functional.linear(rows, gate_up[expert]).chunk(2, -1)
                torch.mm(functional.silu(gate).mul_(up), down[expert].t(), out=answer)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=self.device)
        answers_RkD = answers.index_select(0, back).view(*chosen_Rk.shape, -1)
        return answers_RkD.mul_(probabilities_Rk[..., None].to(x_RD.dtype)).sum(1)


def _by_chunk(packed: Tensor, chunks: Sequence[Chunk]) -> list[tuple[Tensor, Chunk]]:
    pieces = packed.split([chunk.tokens for chunk in chunks])
    return list(zip(pieces, chunks, strict=True))


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _softmax_rows(
    qkv_RGHW: Tensor, chunk: Chunk, cache: tuple[Tensor, Tensor], positional: Positional
) -> Tensor:
    """[R, H * W] of one chunk; keys and values are put into the cache first."""
    keys, values = cache
    (cos, sin), allowed = positional
    turned = _rotate(qkv_RGHW[:, :, :-1].flatten(1, 2), cos, sin).view_as(qkv_RGHW[:, :, :-1])
    keys[chunk.row_R, :, chunk.positions_R] = turned[:, :, -1]
    values[chunk.row_R, :, chunk.positions_R] = qkv_RGHW[:, :, -1]
    # the query heads of a group become query positions: no copy of keys per head
    q_BCGHW = chunk.padded(turned[:, :, :-1])
    output = functional.scaled_dot_product_attention(
        q_BCGHW.transpose(1, 2).flatten(2, 3),  # [B, G, C * H/G, W]
        keys[chunk.rows, :, : chunk.cached_tokens],
        values[chunk.rows, :, : chunk.cached_tokens],
        attn_mask=allowed,
    )
    output = output.unflatten(2, (chunk.longest, -1)).transpose(1, 2)  # [B, C, G, H/G, W]
    return chunk.packed(output.flatten(2))


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm in fp32, written out to work in place."""
    x32 = x.float()
    length = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
    scale = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (x32 * scale).to(x.dtype).mul_(weight)


def _rotate(x_RHW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading elements by [R, 1, J] angles; pairs are (j, j + J)."""
    half = cos.shape[-1]
    first, second = x_RHW[..., :half].float(), x_RHW[..., half : 2 * half].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([turned.to(x_RHW.dtype), x_RHW[..., 2 * half :]], -1)


def _one_token(qkv: tuple[Tensor, Tensor, Tensor], decay_H11: Tensor, state: Tensor) -> Tensor:
    """The recurrence itself, [B, H, W]; updates `state` in place."""
    q, k, v = qkv
    state.mul_(decay_H11)
    flat = state.flatten(0, 1)
    flat.baddbmm_(k.flatten(0, 1)[:, :, None], v.flatten(0, 1)[:, None])
    return torch.bmm(q.flatten(0, 1)[:, None], flat).view(q.shape)


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

"""Lightning attention: linear attention with a fixed decay per head, state of constant size.

    o_t = q_t S_t,   S_t = exp(-s) S_{t-1} + k_t^T v_t            (S in fp32, s > 0 per head)

Computed by chunks: exact inside a chunk, through the state between chunks. No scaling of q, no
rotary, no normaliser. Source: 01 report section 2.2 and the released modelling code of M1.

CUDA tensors go to `m1.model.kernels.lightning`; the torch code here is its twin.

Shape letters: B batch, T tokens, H heads, W head width, N chunks, C tokens per chunk, D hidden,
X = 3 W.
"""

from itertools import pairwise
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.nn import functional

from m1.model.gated_norm import gated_norm
from m1.model.lightning_context import lightning_over_ranks
from m1.model.slopes import slopes

CHUNK_TOKENS = 128  # ours: a window of the toy pretraining is one chunk
CHUNKS_PER_SEGMENT = 128  # bounds the N x N decay matrix between chunks


def lightning_attention(
    q_BHTW: Tensor,
    k_BHTW: Tensor,
    v_BHTW: Tensor,
    slopes_H: Tensor,
    *,
    document_ids_BT: Tensor | None = None,
    initial_state_BHWW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decayed causal linear attention.

    Args:
        q_BHTW: queries, SiLU already applied; likewise keys and values.
        k_BHTW: keys.
        v_BHTW: values.
        slopes_H: positive fp32 decay rates, one per head.
        document_ids_BT: tokens attend within equal ids only; ids are contiguous along T.
        initial_state_BHWW: fp32 state before the first token (belongs to its document).

    Returns:
        Output [B, H, T, W] in the type of q, and the fp32 state after the last token.
    """
    if q_BHTW.is_cuda:
        from m1.model.kernels import lightning

        if lightning.is_supported(q_BHTW.shape[3], q_BHTW.shape[2]):
            whole = (q_BHTW, k_BHTW, v_BHTW)
            return lightning.attention(whole, slopes_H, document_ids_BT, initial_state_BHWW)
    outputs, state, document_before = [], initial_state_BHWW, None
    for part in _segments(q_BHTW.shape[2]):
        ids = None if document_ids_BT is None else document_ids_BT[:, part]
        qkv = (q_BHTW[:, :, part], k_BHTW[:, :, part], v_BHTW[:, :, part])
        output, state = _segment(qkv, slopes_H, ids, state, document_before)
        document_before = None if ids is None else ids[:, -1]
        outputs.append(output)
    assert state is not None
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)), state


def silu_lightning_attention(
    qkv_TBHX: Tensor,
    slopes_H: Tensor,
    *,
    document_ids_BT: Tensor | None = None,
    initial_state_BHWW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lightning attention of SiLU(qkv), where each head's row is [q | k | v].

    Args:
        qkv_TBHX: what the projection gives, before SiLU.
        slopes_H: as `lightning_attention`, like the arguments after it.
        document_ids_BT: see there.
        initial_state_BHWW: see there.

    Returns:
        As `lightning_attention`.
    """
    length, _batch, _heads, three_widths = qkv_TBHX.shape
    if qkv_TBHX.is_cuda:
        from m1.model.kernels import lightning

        if lightning.is_supported(three_widths // 3, length):
            return lightning.silu_attention(qkv_TBHX, slopes_H, document_ids_BT, initial_state_BHWW)
    split = qkv_TBHX.unflatten(3, (3, -1)).permute(3, 1, 2, 0, 4)
    q, k, v = functional.silu(split.contiguous()).unbind(0)
    return lightning_attention(
        q,
        k,
        v,
        slopes_H,
        document_ids_BT=document_ids_BT,
        initial_state_BHWW=initial_state_BHWW,
    )


def _segments(length: int) -> list[slice]:
    """Runs of whole chunks, then what is left as one short chunk: nothing is ever padded."""
    whole = length - length % CHUNK_TOKENS
    edges = [*range(0, whole, CHUNK_TOKENS * CHUNKS_PER_SEGMENT), whole, length]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def _segment(
    qkv: tuple[Tensor, Tensor, Tensor],
    slopes_H: Tensor,
    ids_BT: Tensor | None,
    state_BHWW: Tensor | None,
    document_before_B: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One run of at most CHUNKS_PER_SEGMENT chunks, all chunks at once."""
    size = min(CHUNK_TOKENS, qkv[0].shape[2])
    q, k, v = (x.unflatten(2, (-1, size)) for x in qkv)  # [B, H, N, C, W]
    ids_BNC = None if ids_BT is None else ids_BT.unflatten(1, (-1, size))

    output = _within_chunks(q, k, v, slopes_H, ids_BNC)
    added_BHNWW = _added_by_chunks(k, v, slopes_H, ids_BNC)
    before_BHNWW, after_BHWW = _between_chunks(
        added_BHNWW, slopes_H * size, ids_BNC, state_BHWW, document_before_B
    )
    if before_BHNWW is not None:
        q_start = q * _query_decay(slopes_H, size)[None, :, None, :, None]
        if ids_BNC is not None:
            previous = _previous_ids(ids_BNC, document_before_B)
            q_start = q_start * (ids_BNC == previous[:, :, None])[:, None, :, :, None]
        output = output + (q_start.float() @ before_BHNWW).to(output.dtype)
    return output.flatten(2, 3), after_BHWW


def _added_by_chunks(k: Tensor, v: Tensor, slopes_H: Tensor, ids_BNC: Tensor | None) -> Tensor:
    """What each chunk adds to the state at its end: only its last document counts."""
    k_end = k * _key_decay(slopes_H, k.shape[3])[None, :, None, :, None]
    if ids_BNC is not None:
        ends_BN = ids_BNC[:, :, -1]
        k_end = k_end * (ids_BNC == ends_BN[:, :, None])[:, None, :, :, None]
    return k_end.float().transpose(-1, -2) @ v.float()


def _previous_ids(ids_BNC: Tensor, document_before_B: Tensor | None) -> Tensor:
    """Document of the token before each chunk; before the first, its own document if unknown."""
    first = ids_BNC[:, 0, 0] if document_before_B is None else document_before_B
    return torch.cat([first[:, None], ids_BNC[:, :-1, -1]], 1)


def _key_decay(slopes_H: Tensor, size: int) -> Tensor:
    """Decay from each key of a chunk to the chunk's end, [H, C]; never above 1."""
    steps = torch.arange(size - 1, -1, -1, device=slopes_H.device, dtype=torch.float32)
    return torch.exp(-slopes_H[:, None] * steps)


def _query_decay(slopes_H: Tensor, size: int) -> Tensor:
    """Decay from the state before a chunk to each of its queries, [H, C]; never above 1."""
    steps = torch.arange(1, size + 1, device=slopes_H.device, dtype=torch.float32)
    return torch.exp(-slopes_H[:, None] * steps)


def _causal_decay(slopes_H: Tensor, size: int) -> Tensor:
    """[H, C, C]: exp(-s (i - j)) for i >= j, else 0."""
    position = torch.arange(size, device=slopes_H.device, dtype=torch.float32)
    distance = position[:, None] - position[None, :]
    decay = torch.exp(-slopes_H[:, None, None] * distance.clamp(min=0))
    return decay * (distance >= 0)


def _within_chunks(
    q: Tensor, k: Tensor, v: Tensor, slopes_H: Tensor, ids_BNC: Tensor | None
) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * _causal_decay(slopes_H, q.shape[3])[None, :, None]
    if ids_BNC is not None:
        scores = scores * (ids_BNC[:, :, :, None] == ids_BNC[:, :, None, :])[:, None]
    return scores.to(v.dtype) @ v


def _between_chunks(
    added_BHNWW: Tensor,
    chunk_slopes_H: Tensor,
    ids_BNC: Tensor | None,
    state_BHWW: Tensor | None,
    document_before_B: Tensor | None,
) -> tuple[Tensor | None, Tensor]:
    """State before every chunk and after the last, from what each chunk adds to it.

    A single chunk without a state before it has nothing to read: the first answer is None.

    state_n = sum over m < n of exp(-s C (n - 1 - m)) added_m, as one product with an
    [N + 1, N] matrix; rows of another document than chunk m's end are zero.
    """
    batch, heads, count, width, _ = added_BHNWW.shape
    if count == 1 and state_BHWW is None:
        return None, added_BHNWW[:, :, 0]
    row = torch.arange(count + 1, device=added_BHNWW.device, dtype=torch.float32)
    distance = row[:, None] - 1 - row[None, :count]
    decay = torch.exp(-chunk_slopes_H[:, None, None] * distance.clamp(min=0)) * (distance >= 0)
    weights = decay[None]
    carry_BHN = torch.exp(-chunk_slopes_H[:, None] * row)[None]
    if ids_BNC is not None:
        ends_BN = ids_BNC[:, :, -1]
        previous = torch.cat([_previous_ids(ids_BNC, document_before_B), ends_BN[:, -1:]], 1)
        weights = weights * (previous[:, :, None] == ends_BN[:, None, :])[:, None]
        carry_BHN = carry_BHN * (previous == previous[:, :1])[:, None]
    states = weights.expand(batch, -1, -1, -1) @ added_BHNWW.flatten(3)
    states = states.view(batch, heads, count + 1, width, width)
    if state_BHWW is not None:
        states = states + carry_BHN[..., None, None] * state_BHWW[:, :, None]
    return states[:, :, :count], states[:, :, count]


class LightningAttention(MegatronModule):
    """The attention half of a lightning layer, in Megatron's calling convention.

    qkv = SiLU(W_qkv x), packed per head as [q | k | v]; output = W_out(sigmoid(W_gate x) *
    RMSNorm over all heads(attention)). Under tensor parallelism heads are split and the norm's
    mean square is all-reduced. Source: facts sheet section 1.3.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.shape = config.hybrid
        self.layer_number = layer_number
        self.tp_group = pg_collection.tp if pg_collection else None
        self.cp_group = pg_collection.cp if pg_collection else None
        ranks = config.tensor_model_parallel_size
        self.num_local_heads = self.shape.num_heads // ranks
        self._slopes_H: Tensor | None = None
        width = self.shape.attention_width
        common = {
            "config": config,
            "bias": False,
            "skip_bias_add": False,
            "tp_group": self.tp_group,
        }
        self.qkv_projection = tensor_parallel.ColumnParallelLinear(
            config.hidden_size,
            3 * width,
            init_method=config.init_method,
            gather_output=False,
            **common,
        )
        self.gate_projection = tensor_parallel.ColumnParallelLinear(
            config.hidden_size, width, init_method=config.init_method, gather_output=False, **common
        )
        self.out_projection = tensor_parallel.RowParallelLinear(
            width,
            config.hidden_size,
            init_method=config.output_layer_init_method,
            input_is_parallel=True,
            **common,
        )
        self.norm_weight = torch.nn.Parameter(torch.ones(width // ranks, dtype=config.params_dtype))
        tensor_parallel.set_tensor_model_parallel_attributes(self.norm_weight, True, 0, 1)

    def _local_slopes(self, device: torch.device) -> Tensor:
        """Fp32 whatever the parameter type: exp(-5e-5) is 1.0 in bf16 (facts 2.1).

        Kept after the first call: a copy from the host would make every layer wait.
        """
        if self._slopes_H is None or self._slopes_H.device != device:
            rank = self.tp_group.rank() if self.tp_group is not None else 0
            start = rank * self.num_local_heads
            every = slopes(self.shape, self.layer_number - 1)
            self._slopes_H = every[start : start + self.num_local_heads].to(device)
        return self._slopes_H

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """Attend within documents.

        Args:
            hidden_states: [T, B, D], already normalised.
            attention_mask: document ids or None (see `m1.model.spec`).
        """
        qkv, _unused = self.qkv_projection(hidden_states)
        gate, _unused = self.gate_projection(hidden_states)
        length, batch, _width = qkv.shape
        pieces_TBHF = qkv.view(length, batch, self.num_local_heads, -1)
        output = self._attend(pieces_TBHF, attention_mask)
        flat = output.permute(2, 0, 1, 3).reshape(length, batch, -1)
        normed = gated_norm(
            flat,
            gate,
            self.norm_weight,
            epsilon=self.shape.lightning_norm_epsilon,
            group=self.tp_group if self.config.tensor_model_parallel_size > 1 else None,
        )
        projected, _unused = self.out_projection(normed)
        return projected, None

    def _attend(self, qkv_TBHF: Tensor, document_ids_BT: Tensor | None) -> Tensor:
        slopes_H = self._local_slopes(qkv_TBHF.device)
        if self.cp_group is not None and self.cp_group.size() > 1:
            split = qkv_TBHF.unflatten(-1, (3, -1)).permute(3, 1, 2, 0, 4)
            q, k, v = functional.silu(split.contiguous()).unbind(0)
            return lightning_over_ranks(
                lightning_attention, (q, k, v), slopes_H, document_ids_BT, self.cp_group
            )
        output, _state = silu_lightning_attention(
            qkv_TBHF, slopes_H, document_ids_BT=document_ids_BT
        )
        return output

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Children as Megatron does it; the norm weight is split with the heads."""
        sharded: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        own = {"norm_weight": self.norm_weight}
        sharded.update(
            make_sharded_tensors_for_checkpoint(own, prefix, {"norm_weight": 0}, sharded_offsets)
        )
        return sharded

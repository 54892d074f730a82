"""The core of a softmax layer: causal scaled dot product with grouped KV heads.

Projections and rotary embedding are Megatron's `SelfAttention`; this is only what stands between
them. Documents of one row never see each other, and no T x T mask is built for long rows. Over
context-parallel ranks keys and values of the whole window are gathered (few heads: M1 has 8 of
them to 64 query heads) and each rank attends for its two chunks.

Shape letters: B batch, T tokens, C tokens of a chunk, H query heads, G key/value heads, W head
width.
"""

from itertools import accumulate, pairwise
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from m1.model.context_parallel import gather_window, own_chunks

LONGEST_MASKED_TOKENS = 1024  # ours: below this one masked call beats a call per document
TILE_TOKENS = 512  # ours: queries per call where a mask has to be written out


def document_attention(
    q_BHCW: Tensor,
    k_BGTW: Tensor,
    v_BGTW: Tensor,
    document_ids_BT: Tensor | None,
    *,
    start: int = 0,
) -> Tensor:
    """Causal attention within documents, [B, H, C, W]; scale is 1 / sqrt(W).

    Args:
        q_BHCW: queries of the tokens `start` to `start + C` of the row; by default all.
        k_BGTW: keys of the row.
        v_BGTW: values of the row.
        document_ids_BT: tokens attend within equal ids only; ids are contiguous along T.
        start: place of the first query in the row.
    """
    stop = start + q_BHCW.shape[2]
    k, v = k_BGTW[:, :, :stop], v_BGTW[:, :, :stop]
    ids = None if document_ids_BT is None else document_ids_BT[:, :stop]
    if ids is None or bool((ids == ids[:, :1]).all()):
        return _last_queries(q_BHCW, k, v)
    if stop <= LONGEST_MASKED_TOKENS:
        return functional.scaled_dot_product_attention(
            q_BHCW, k, v, attn_mask=_mask(ids)[:, :, start:], enable_gqa=True
        )
    rows = [_by_document(q_BHCW[row], k[row], v[row], ids[row]) for row in range(q_BHCW.shape[0])]
    return torch.stack(rows)


def _mask(document_ids_BT: Tensor) -> Tensor:
    same = document_ids_BT[:, None, :, None] == document_ids_BT[:, None, None, :]
    return same.tril()


def _by_document(q_HCW: Tensor, k_GTW: Tensor, v_GTW: Tensor, ids_T: Tensor) -> Tensor:
    """One call per document that has queries among the last C tokens."""
    _, counts = torch.unique_consecutive(ids_T, return_counts=True)
    start = ids_T.shape[0] - q_HCW.shape[1]
    pieces = []
    for first, end in pairwise([0, *accumulate(counts.tolist())]):
        if end <= start:
            continue
        own = slice(max(first - start, 0), end - start)
        k, v = k_GTW[:, first:end], v_GTW[:, first:end]
        pieces.append(_last_queries(q_HCW[None, :, own], k[None], v[None])[0])
    return torch.cat(pieces, 1)


def _last_queries(q_BHCW: Tensor, k_BGTW: Tensor, v_BGTW: Tensor) -> Tensor:
    """Causal attention of the last C tokens of a document over all T of it."""
    queries, keys = q_BHCW.shape[2], k_BGTW.shape[2]
    if queries == keys:
        return functional.scaled_dot_product_attention(
            q_BHCW, k_BGTW, v_BGTW, is_causal=True, enable_gqa=True
        )
    if q_BHCW.is_cuda and q_BHCW.dtype in (torch.bfloat16, torch.float16):
        bias = causal_lower_right(queries, keys)  # the flash kernel knows it without a mask
        return functional.scaled_dot_product_attention(
            q_BHCW, k_BGTW, v_BGTW, attn_mask=bias, enable_gqa=True
        )
    tiles = q_BHCW.split(TILE_TOKENS, 2)
    done = range(0, queries, TILE_TOKENS)
    return torch.cat(
        [
            _tile(tile, k_BGTW, v_BGTW, queries - first)
            for tile, first in zip(tiles, done, strict=True)
        ],
        2,
    )


def _tile(q_BHCW: Tensor, k_BGTW: Tensor, v_BGTW: Tensor, from_end: int) -> Tensor:
    """A few queries, the first of them `from_end` tokens before the end, under a small mask."""
    queries = q_BHCW.shape[2]
    keys = k_BGTW.shape[2] - from_end + queries
    mask = torch.ones(queries, keys, dtype=torch.bool, device=q_BHCW.device)
    return functional.scaled_dot_product_attention(
        q_BHCW,
        k_BGTW[:, :, :keys],
        v_BGTW[:, :, :keys],
        attn_mask=mask.tril(keys - queries),
        enable_gqa=True,
    )


def attention_over_ranks(
    qkv_TBHW: tuple[Tensor, Tensor, Tensor], document_ids_BT: Tensor | None, group: ProcessGroup
) -> Tensor:
    """Output [B, H, T, W] of this rank's two chunks of the window.

    Args:
        qkv_TBHW: queries, keys and values of this rank; keys and values may have fewer heads.
        document_ids_BT: of the whole window, or None when it is one document.
        group: the context-parallel ranks.
    """
    query, key, value = qkv_TBHW
    whole = gather_window(torch.cat([key, value], -1), group).permute(1, 2, 0, 3)
    k, v = whole.chunk(2, -1)
    halves = query.permute(1, 2, 0, 3).chunk(2, 2)
    size = halves[0].shape[2]
    outputs = [
        document_attention(q, k, v, document_ids_BT, start=chunk * size)
        for q, chunk in zip(halves, own_chunks(group.rank(), group.size()), strict=True)
    ]
    return torch.cat(outputs, 2)


class DocumentAttention(MegatronModule):
    """`document_attention` in the calling convention of Megatron's core attention."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.cp_group = pg_collection.cp if pg_collection else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **_: Any,
    ) -> Tensor:
        """Attend; query [T, B, H, W], key and value [T, B, G, W]; returns [T, B, H * W]."""
        if self.cp_group is not None and self.cp_group.size() > 1:
            output = attention_over_ranks((query, key, value), attention_mask, self.cp_group)
        else:
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            output = document_attention(q, k, v, attention_mask)
        return output.permute(2, 0, 1, 3).flatten(2)

"""The core of a softmax layer: causal scaled dot product with grouped KV heads.

Projections and rotary embedding are Megatron's `SelfAttention`; this is only what stands between
them. Documents of one row never see each other, and no T x T mask is built for long rows.

Shape letters: B batch, T tokens, H query heads, G key/value heads, W head width.
"""

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn import functional

LONGEST_MASKED_TOKENS = 1024  # ours: below this one masked call beats a call per document


def document_attention(
    q_BHTW: Tensor, k_BGTW: Tensor, v_BGTW: Tensor, document_ids_BT: Tensor | None
) -> Tensor:
    """Causal attention within documents, [B, H, T, W]; scale is 1 / sqrt(W)."""
    if document_ids_BT is None or bool((document_ids_BT == document_ids_BT[:, :1]).all()):
        return functional.scaled_dot_product_attention(
            q_BHTW, k_BGTW, v_BGTW, is_causal=True, enable_gqa=True
        )
    if q_BHTW.shape[2] <= LONGEST_MASKED_TOKENS:
        return functional.scaled_dot_product_attention(
            q_BHTW, k_BGTW, v_BGTW, attn_mask=_mask(document_ids_BT), enable_gqa=True
        )
    rows = [
        _by_document(q_BHTW[row], k_BGTW[row], v_BGTW[row], document_ids_BT[row])
        for row in range(q_BHTW.shape[0])
    ]
    return torch.stack(rows)


def _mask(document_ids_BT: Tensor) -> Tensor:
    same = document_ids_BT[:, None, :, None] == document_ids_BT[:, None, None, :]
    return same.tril()


def _by_document(q_HTW: Tensor, k_GTW: Tensor, v_GTW: Tensor, ids_T: Tensor) -> Tensor:
    _, counts = torch.unique_consecutive(ids_T, return_counts=True)
    sizes = counts.tolist()
    pieces = [
        functional.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, enable_gqa=True
        )[0]
        for q, k, v in zip(
            q_HTW.split(sizes, 1), k_GTW.split(sizes, 1), v_GTW.split(sizes, 1), strict=True
        )
    ]
    return torch.cat(pieces, 1)


class DocumentAttention(MegatronModule):
    """`document_attention` in the calling convention of Megatron's core attention."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        **_: Any,
    ) -> None:
        super().__init__(config=config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **_: Any,
    ) -> Tensor:
        """Attend; query [T, B, H, W], key and value [T, B, G, W]; returns [T, B, H * W]."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        output = document_attention(q, k, v, attention_mask)
        return output.permute(2, 0, 1, 3).flatten(2)

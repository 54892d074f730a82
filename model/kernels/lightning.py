"""Lightning attention on CUDA, with gradients.

Two numbers per token and head, width W = 128, chunks of C = 64 tokens, bf16 (a tensor: 2 W bytes):

- forward: 4 C W + 4 W^2 = 98 304 FLOPs (131 072 as done: both halves of a head compute its
  scores), at least 1024 bytes (q, k, v in, o out), which is also what is moved;
- backward: 10 C W + 10 W^2 = 245 760 FLOPs, at least 1792 bytes; moved 2560 (dk and dv share
  their loads through the L2 cache, dq goes the other way).

With `silu_attention` the backward also reads what SiLU was applied to (768 bytes) and saves a pass
of 2304. The twin in plain torch is `m1.model.lightning_attention`, which calls this for CUDA.

Shape letters: B batch, T tokens, H heads, W head width, X = 3 W.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from m1.model.kernels.lightning_launch import (
    LARGEST_WIDTH,
    Documents,
    Qkv,
    find_documents,
    scan_backward,
    scan_forward,
)


def is_supported(width: int, length: int) -> bool:
    """Whether the kernels take heads of this width: multiples of 8 up to 128, any length."""
    return width % 8 == 0 and width <= LARGEST_WIDTH and length > 0


def _aligned(x: Tensor) -> Tensor:
    """`x` itself where the copy engine can read it (16-byte rows), else a copy."""
    item = x.element_size()
    is_aligned = x.data_ptr() % 16 == 0 and all(s * item % 16 == 0 for s in x.stride()[:-1])
    return x if is_aligned and x.stride(-1) == 1 else x.contiguous()


class _Attention(torch.autograd.Function):
    """Attention of separate q, k and v."""

    @staticmethod
    def forward(
        ctx: Any,
        slopes_H: Tensor,
        documents: Documents | None,
        initial_BHWW: Tensor | None,
        *qkv: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = Qkv(*(_aligned(tensor) for tensor in qkv))
        output, final, states = scan_forward(x, slopes_H, documents, initial_BHWW)
        ctx.save_for_backward(*x, slopes_H, states)
        ctx.documents, ctx.has_initial = documents, initial_BHWW is not None
        return output, final

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        *x, slopes_H, states = ctx.saved_tensors
        gradients = Qkv(*(torch.empty_like(tensor) for tensor in x))
        saved = (slopes_H, ctx.documents, states)
        d_output, d_final = _aligned(d[0]), d[1].contiguous()
        d_initial = scan_backward(Qkv(*x), gradients, None, (d_output, d_final), saved)
        return None, None, d_initial if ctx.has_initial else None, *gradients


class _SiluAttention(torch.autograd.Function):
    """Attention of SiLU(qkv); one buffer of gradients, SiLU's derivative applied on the way out."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_TBHX: Tensor,
        slopes_H: Tensor,
        documents: Documents | None,
        initial_BHWW: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        active = functional.silu(qkv_TBHX)
        output, final, states = scan_forward(_split(active), slopes_H, documents, initial_BHWW)
        ctx.save_for_backward(qkv_TBHX, active, slopes_H, states)
        ctx.documents, ctx.has_initial = documents, initial_BHWW is not None
        return output, final

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        qkv, active, slopes_H, states = ctx.saved_tensors
        gradient = torch.empty_like(qkv)
        saved = (slopes_H, ctx.documents, states)
        d_output, d_final = _aligned(d[0]), d[1].contiguous()
        d_initial = scan_backward(
            _split(active), _split(gradient), _split(qkv), (d_output, d_final), saved
        )
        return gradient, None, None, d_initial if ctx.has_initial else None


def _split(qkv_TBHX: Tensor) -> Qkv:
    """Views [B, H, T, W] of the three parts of a projection's [T, B, H, 3 W]."""
    return Qkv(*qkv_TBHX.permute(1, 2, 0, 3).chunk(3, -1))


def _state(initial_BHWW: Tensor | None) -> Tensor | None:
    return None if initial_BHWW is None else initial_BHWW.float().contiguous()


def attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    slopes_H: Tensor,
    ids_BT: Tensor | None,
    initial_BHWW: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `m1.model.lightning_attention.lightning_attention`; o is stored token by token."""
    documents = find_documents(ids_BT)
    output: tuple[Tensor, Tensor] = _Attention.apply(
        slopes_H, documents, _state(initial_BHWW), *qkv
    )
    return output


def silu_attention(
    qkv_TBHX: Tensor, slopes_H: Tensor, ids_BT: Tensor | None, initial_BHWW: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `m1.model.lightning_attention.silu_lightning_attention`."""
    documents = find_documents(ids_BT)
    output: tuple[Tensor, Tensor] = _SiluAttention.apply(
        qkv_TBHX.contiguous(), slopes_H, documents, _state(initial_BHWW)
    )
    return output

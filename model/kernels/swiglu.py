"""The inside of an expert, SiLU(gate) x up, with the router's probability, in one kernel each way.

    y_r = SiLU(g_r) u_r p_r        (one p per row)

Two numbers per row of F inner features in bf16: forward 3 tensors, 6 F bytes; backward 5 tensors,
10 F bytes. Scaling here instead of behind the down projection saves a pass over its output each
way.

Shape letters: R rows, F inner features.
"""
# Triton's language has no annotations, and its kernels take what they need one by one.
# ruff: noqa: ANN001, ANN201, PLR0913
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def forward_kernel(both, probabilities, y, features, BLOCK: tl.constexpr):
    """One block of one row."""
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < features
    both += row * 2 * features
    gate = tl.load(both + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + features + place, mask=inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up * tl.load(probabilities + row).to(tl.float32)
    tl.store(y + row * features + place, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    d_y, both, probabilities, d_both, d_probabilities, features, BLOCK: tl.constexpr
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    d_y += row * features
    both += row * 2 * features
    d_both += row * 2 * features
    probability = tl.load(probabilities + row).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, features, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < features
        gate = tl.load(both + place, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(both + features + place, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(d_y + place, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        active = gate * share
        total += d * active * up
        d *= probability
        d_gate = d * up * share * (1.0 + gate * (1.0 - share))
        tl.store(d_both + place, d_gate.to(d_both.dtype.element_ty), mask=inside)
        d_up = (d * active).to(d_both.dtype.element_ty)
        tl.store(d_both + features + place, d_up, mask=inside)
    d_probability = tl.sum(total, 0).to(d_probabilities.dtype.element_ty)
    tl.store(d_probabilities + row, d_probability)


class _ScaledSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor, probabilities_R: Tensor) -> Tensor:
        rows, twice = both.shape
        y_RF = both.new_empty(rows, twice // 2)
        grid = (rows, triton.cdiv(twice // 2, BLOCK))
        forward_kernel[grid](both, probabilities_R, y_RF, twice // 2, BLOCK=BLOCK)
        ctx.save_for_backward(both, probabilities_R)
        return y_RF

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor, Tensor]:
        both, probabilities_R = ctx.saved_tensors
        d_both, d_probabilities_R = torch.empty_like(both), torch.empty_like(probabilities_R)
        backward_kernel[(both.shape[0],)](
            d[0].contiguous(),
            both,
            probabilities_R,
            d_both,
            d_probabilities_R,
            both.shape[1] // 2,
            BLOCK=BLOCK,
            num_warps=8,
        )
        return d_both, d_probabilities_R


def scaled_swiglu(both: Tensor, probabilities_R: Tensor) -> Tensor:
    """SiLU of the first half of each row times its second half times its probability, [R, F]."""
    y_RF: Tensor = _ScaledSwiGLU.apply(both.contiguous(), probabilities_R.contiguous())
    return y_RF

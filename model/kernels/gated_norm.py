"""RMSNorm over all heads times sigmoid(gate) in one kernel each way.

    y = x rsqrt(mean(x^2) + epsilon) weight sigmoid(gate)

Two numbers per token of F features in bf16: forward 3 tensors, 6 F bytes; backward 5 tensors,
10 F bytes (12 to 20 FLOPs a feature: nothing). Under tensor parallelism each rank holds F of all
features: the row's sum of squares (and in the backward one dot product a row) is all-reduced, for
which x (and dy, x, gate) are read once more.

Shape letters: R rows, F features of this rank, P programs.
"""
# Triton's language has no annotations, and its kernels take what they need one by one.
# ruff: noqa: ANN001, ANN201, PLR0913
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, distributed

PROGRAMS_PER_PROCESSOR = 2  # ours
LARGEST_FEATURES = 16_384  # a row stays in registers


def is_supported(features: int) -> bool:
    """Whether a row of this rank fits the kernels."""
    return features <= LARGEST_FEATURES


@triton.jit
def forward_kernel(
    x, gate, weight, squares, y, rows, features, all_features, epsilon,
    HAS_SQUARES: tl.constexpr, HAS_GATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row; writes its sum of squares unless that is given."""
    row, place = tl.program_id(0), tl.arange(0, BLOCK)
    inside = place < features
    here = row.to(tl.int64) * features + place
    x_row = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    weight_row = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_GATE:
        gate_row = tl.load(gate + here, mask=inside, other=0.0).to(tl.float32)
        weight_row *= tl.sigmoid(gate_row)
    if HAS_SQUARES:
        total = tl.load(squares + row)
    else:
        total = tl.sum(x_row * x_row, 0)
        tl.store(squares + row, total)
    scale = tl.rsqrt(total / all_features + epsilon)
    result = x_row * scale * weight_row
    tl.store(y + here, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def dots_kernel(d_y, x, gate, weight, dots, rows, features, BLOCK: tl.constexpr):
    """Per row, the sum over this rank's features of dy sigmoid(gate) weight x."""
    row, place = tl.program_id(0), tl.arange(0, BLOCK)
    inside = place < features
    here = row.to(tl.int64) * features + place
    x_row = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    gate_row = tl.load(gate + here, mask=inside, other=0.0).to(tl.float32)
    d_row = tl.load(d_y + here, mask=inside, other=0.0).to(tl.float32)
    weight_row = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dots + row, tl.sum(d_row * tl.sigmoid(gate_row) * weight_row * x_row, 0))


@triton.jit
def backward_kernel(
    d_y, x, gate, weight, squares, dots, d_x, d_gate, d_weights,
    rows, features, all_features, epsilon,
    HAS_DOTS: tl.constexpr, HAS_GATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every P-th row; the weight's gradient is summed in registers and written once a program."""
    program, place = tl.program_id(0), tl.arange(0, BLOCK)
    inside = place < features
    weight_row = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    d_weight = tl.zeros([BLOCK], tl.float32)
    wide = tl.cast(features, tl.int64)
    for row in range(program, rows, tl.num_programs(0)):
        here = row * wide + place
        x_row = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
        open_row = tl.full([BLOCK], 1.0, tl.float32)
        if HAS_GATE:
            open_row = tl.sigmoid(tl.load(gate + here, mask=inside, other=0.0).to(tl.float32))
        d_row = tl.load(d_y + here, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.load(squares + row) / all_features + epsilon)
        normed = x_row * scale
        d_open = d_row * normed
        d_weight += d_open * open_row
        d_scaled = d_row * open_row * weight_row
        dot = tl.load(dots + row) if HAS_DOTS else tl.sum(d_scaled * x_row, 0)
        d_x_row = scale * (d_scaled - normed * (dot * scale / all_features))
        tl.store(d_x + here, d_x_row.to(d_x.dtype.element_ty), mask=inside)
        if HAS_GATE:
            d_gate_row = d_open * weight_row * open_row * (1.0 - open_row)
            tl.store(d_gate + here, d_gate_row.to(d_gate.dtype.element_ty), mask=inside)
    tl.store(d_weights + program.to(tl.int64) * features + place, d_weight, mask=inside)


def _launch(features: int) -> dict[str, int]:
    return {"BLOCK": triton.next_power_of_2(features), "num_warps": 8 if features > 2048 else 4}


def _programs(rows: int, device: torch.device) -> int:
    if device.type != "cuda":
        return min(rows, 4)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return min(rows, PROGRAMS_PER_PROCESSOR * processors)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RF: Tensor,
        gate_RF: Tensor | None,
        weight_F: Tensor,
        epsilon: float,
        group: distributed.ProcessGroup | None,
    ) -> Tensor:
        rows, features = x_RF.shape
        ctx.epsilon, ctx.group = epsilon, group
        ctx.all_features = features * (1 if group is None else group.size())
        if group is None:
            squares_R = x_RF.new_empty(rows, dtype=torch.float32)
        else:
            squares_R = torch.linalg.vector_norm(x_RF, dim=1, dtype=torch.float32).square()
            distributed.all_reduce(squares_R, group=group)
        y_RF = torch.empty_like(x_RF)
        forward_kernel[(rows,)](
            x_RF,
            x_RF if gate_RF is None else gate_RF,
            weight_F,
            squares_R,
            y_RF,
            rows,
            features,
            ctx.all_features,
            epsilon,
            HAS_SQUARES=group is not None,
            HAS_GATE=gate_RF is not None,
            **_launch(features),
        )
        ctx.save_for_backward(x_RF, gate_RF, weight_F, squares_R)
        return y_RF

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight, squares = ctx.saved_tensors
        d_y, (rows, features) = d[0].contiguous(), x.shape
        dots = torch.empty_like(squares)
        if ctx.group is not None:
            dots_kernel[(rows,)](d_y, x, gate, weight, dots, rows, features, **_launch(features))
            distributed.all_reduce(dots, group=ctx.group)
        d_x = torch.empty_like(x)
        d_gate = None if gate is None else torch.empty_like(gate)
        programs = _programs(rows, x.device)
        d_weights_PF = squares.new_empty(programs, features)
        backward_kernel[(programs,)](
            d_y,
            x,
            x if gate is None else gate,
            weight,
            squares,
            dots,
            d_x,
            d_x if d_gate is None else d_gate,
            d_weights_PF,
            rows,
            features,
            ctx.all_features,
            ctx.epsilon,
            HAS_DOTS=ctx.group is not None,
            HAS_GATE=gate is not None,
            **_launch(features),
        )
        return d_x, d_gate, d_weights_PF.sum(0).to(weight.dtype), None, None


def gated_norm(
    x: Tensor,
    gate: Tensor,
    weight_F: Tensor,
    *,
    epsilon: float,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """As `m1.model.gated_norm.gated_norm`, for at least one row of CUDA tensors."""
    features = x.shape[-1]
    rows = (x.reshape(-1, features), gate.reshape(-1, features))
    y_RF: Tensor = _GatedNorm.apply(*rows, weight_F, epsilon, group)
    return y_RF.view(x.shape)


def norm(x: Tensor, weight_F: Tensor, *, epsilon: float) -> Tensor:
    """RMSNorm alone, for at least one row of CUDA tensors; 4 and 6 F bytes a row."""
    features = x.shape[-1]
    y_RF: Tensor = _GatedNorm.apply(x.reshape(-1, features), None, weight_F, epsilon, None)
    return y_RF.view(x.shape)

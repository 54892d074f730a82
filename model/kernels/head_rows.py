"""What the head does to rows of logits, and the split of a weight for the tensor cores.

Two numbers per logit: statistics read it once (4 bytes), the gradient reads it once and writes half
of it (6 bytes); the products around them need 2 D FLOPs a logit each, so that at D = 6144 these
kernels are under a tenth of the time.

Shape letters: R rows, V vocabulary of this rank, D hidden.
"""
# Triton's language has no annotations, and its kernels take what they need one by one.
# ruff: noqa: ANN001, ANN201, PLR0913
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def statistics_kernel(
    logits, targets, maxima, sums, weighted, target_logits, vocabulary, first, BLOCK: tl.constexpr
):
    """One row: maximum m, sum of exp(l - m), sum of exp(l - m) l, and the target's logit."""
    row, place = tl.program_id(0), tl.arange(0, BLOCK)
    logits += row.to(tl.int64) * vocabulary
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mean = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        inside = start + place < vocabulary
        x = tl.load(logits + start + place, mask=inside, other=-1e30)
        higher = tl.maximum(largest, x)
        shrink, share = tl.exp(largest - higher), tl.exp(x - higher)
        total = total * shrink + share
        mean = mean * shrink + share * x
        largest = higher
    highest = tl.max(largest, 0)
    # lanes past a short vocabulary hold -1e30: exp makes them zero
    shrink = tl.exp(largest - highest)
    tl.store(maxima + row, highest)
    tl.store(sums + row, tl.sum(total * shrink, 0))
    tl.store(weighted + row, tl.sum(mean * shrink, 0))
    target = tl.load(targets + row) - first
    is_here = (target >= 0) & (target < vocabulary)
    value = tl.load(logits + tl.where(is_here, target, 0))
    tl.store(target_logits + row, tl.where(is_here, value, 0.0))


@triton.jit
def gradient_kernel(
    logits, gradient, targets, normalisers, coefficients, vocabulary, gradient_stride, first,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: (one-hot(target) - softmax) times its coefficient, written over the logits.

    Narrower entries land behind what is still to be read; the barrier keeps a block's writes
    behind all its reads.
    """
    row, place = tl.program_id(0), tl.arange(0, BLOCK)
    logits += row.to(tl.int64) * vocabulary
    gradient += row.to(tl.int64) * gradient_stride
    target = tl.load(targets + row) - first
    normaliser, coefficient = tl.load(normalisers + row), tl.load(coefficients + row)
    for start in range(0, vocabulary, BLOCK):
        inside = start + place < vocabulary
        x = tl.load(logits + start + place, mask=inside, other=0.0)
        hit = tl.where(start + place == target, 1.0, 0.0)
        result = (hit - tl.exp(x - normaliser)) * coefficient
        tl.debug_barrier()
        tl.store(gradient + start + place, result.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def split_kernel(weight, parts, hidden, BLOCK: tl.constexpr):
    """One row of an fp32 weight as its bf16 rounding, then the bf16 rounding of what is left."""
    row, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < hidden
    x = tl.load(weight + row.to(tl.int64) * hidden + place, mask=inside, other=0.0)
    high = x.to(tl.bfloat16)
    low = (x - high.to(tl.float32)).to(tl.bfloat16)
    parts += row.to(tl.int64) * 2 * hidden
    tl.store(parts + place, high, mask=inside)
    tl.store(parts + hidden + place, low, mask=inside)


def statistics(logits_RV: Tensor, targets_R: Tensor, first: int) -> tuple[Tensor, ...]:
    """Maximum, sum of exponentials, their sum weighted by the logit, target logit; [R] each."""
    rows, vocabulary = logits_RV.shape
    found = [torch.empty_like(targets_R, dtype=torch.float32) for _ in range(4)]
    statistics_kernel[(rows,)](
        logits_RV, targets_R, *found, vocabulary, first, BLOCK=BLOCK, num_warps=8
    )
    return tuple(found)


def gradient(
    logits_RV: Tensor,
    targets_R: Tensor,
    scales: tuple[Tensor, Tensor],
    first: int,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of the logits in `dtype`, in the memory of `logits_RV`, which is lost.

    `scales` are the log-normaliser of each row and the gradient of its log-probability.
    """
    rows, vocabulary = logits_RV.shape
    target = logits_RV if dtype is torch.float32 else logits_RV.view(dtype)[:, :vocabulary]
    gradient_kernel[(rows,)](
        logits_RV,
        target,
        targets_R,
        *scales,
        vocabulary,
        target.stride(0),
        first,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return target


def split(weight_VD: Tensor) -> Tensor:
    """[V, 2 D] bf16: high parts beside low parts; their sum is the weight to 2^-16."""
    rows, hidden = weight_VD.shape
    parts = torch.empty(rows, 2 * hidden, dtype=torch.bfloat16, device=weight_VD.device)
    split_kernel[(rows, triton.cdiv(hidden, BLOCK))](weight_VD, parts, hidden, BLOCK=BLOCK)
    return parts

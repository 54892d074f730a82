"""Log-probabilities, entropy and loss of the fp32 head without ever holding tokens x vocabulary.

Chunks of tokens meet the whole vocabulary, block by block. On CUDA with bf16 hidden states the
logits come from the tensor cores and lose nothing: a bf16 weight times a bf16 hidden state is exact
in fp32, and an fp32 weight is split into two bf16 parts (2^-16). Everything else is a plain fp32
product. The gradient of bf16 hidden states uses bf16 gradients of logits, summed in fp32.

Two numbers at 8192 tokens, hidden 6144, vocabulary 200 064: 2.0e13 FLOPs a product (25 ms at 790
TFLOP/s), three products with a bf16 weight and four with an fp32 one; one read of the weight (2.5
or 4.9 GB) and one write of its gradient.

Shape letters: R rows (tokens), V vocabulary of this rank, D hidden.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

CHUNK_ROWS = 2048  # ours: 1.5 GiB of logits at a vocabulary of 200 064
BLOCK_COLUMNS = 16_384  # ours: of the vocabulary, split and multiplied at a time

# loss summed over the given rows, from their log-probabilities
Objective = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True, slots=True)
class Head:
    """One head on one rank.

    Args:
        weight_VD: this rank's rows of the projection.
        group: ranks that share the vocabulary, in its order; None is this rank alone.
    """

    weight_VD: Tensor
    group: distributed.ProcessGroup | None = None

    @property
    def first_token(self) -> int:
        """The vocabulary index of this rank's first row."""
        return 0 if self.group is None else self.group.rank() * self.weight_VD.shape[0]

    def blocks(self) -> Iterator[slice]:
        """Parts of this rank's vocabulary."""
        for start in range(0, self.weight_VD.shape[0], BLOCK_COLUMNS):
            yield slice(start, min(start + BLOCK_COLUMNS, self.weight_VD.shape[0]))


def _on_tensor_cores(hidden_RD: Tensor) -> bool:
    return hidden_RD.is_cuda and hidden_RD.dtype is torch.bfloat16


def exact_logits(hidden_RD: Tensor, weight_VD: Tensor, out_RV: Tensor | None = None) -> Tensor:
    """Fp32 logits [R, V]: the one product that training and decoding both use."""
    rows, vocabulary = hidden_RD.shape[0], weight_VD.shape[0]
    if out_RV is None:
        out_RV = torch.empty(rows, vocabulary, dtype=torch.float32, device=hidden_RD.device)
    twice = None
    for block in Head(weight_VD).blocks():
        part, out = weight_VD[block], out_RV[:, block]
        if not _on_tensor_cores(hidden_RD):
            torch.mm(hidden_RD.float(), part.float().t(), out=out)
        elif part.dtype is torch.bfloat16:
            torch.mm(hidden_RD, part.t(), out_dtype=torch.float32, out=out)
        else:
            from m1.model.kernels import head_rows

            twice = torch.cat([hidden_RD, hidden_RD], 1) if twice is None else twice
            torch.mm(twice, head_rows.split(part).t(), out_dtype=torch.float32, out=out)
    return out_RV


@dataclass(frozen=True, slots=True)
class Scores:
    """Of each row: log-probability of its target, entropy and log of the normaliser, fp32."""

    logprobs_R: Tensor
    entropy_R: Tensor
    normaliser_R: Tensor


def _statistics(logits_RV: Tensor, targets_R: Tensor, first: int) -> tuple[Tensor, ...]:
    """Maximum, sum of exponentials, their sum weighted by the logit, target logit; [R] each."""
    if logits_RV.is_cuda:
        from m1.model.kernels import head_rows

        return head_rows.statistics(logits_RV, targets_R, first)
    largest = logits_RV.max(1).values
    shares = torch.exp(logits_RV - largest[:, None])
    local = targets_R - first
    is_here = (local >= 0) & (local < logits_RV.shape[1])
    target = logits_RV.gather(1, torch.where(is_here, local, 0)[:, None])[:, 0]
    weighted = (shares * logits_RV).sum(1)
    return largest, shares.sum(1), weighted, torch.where(is_here, target, 0.0)


def _scores(logits_RV: Tensor, targets_R: Tensor, head: Head) -> Scores:
    largest, total, weighted, target = _statistics(logits_RV, targets_R, head.first_token)
    if head.group is not None:
        highest = largest.clone()
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=head.group)
        shrink = torch.exp(largest - highest)
        sums = torch.stack([total * shrink, weighted * shrink, target])
        distributed.all_reduce(sums, group=head.group)
        largest, (total, weighted, target) = highest, sums
    normaliser = largest + total.log()
    return Scores(target - normaliser, normaliser - weighted / total, normaliser)


def _gradient(
    logits_RV: Tensor, targets_R: Tensor, normaliser_R: Tensor, coefficients_R: Tensor, first: int
) -> Tensor:
    """(one-hot(target) - softmax) x coefficient: the twin of `head_rows.gradient`."""
    place_V = torch.arange(first, first + logits_RV.shape[1], device=logits_RV.device)
    hit_RV = (targets_R[:, None] == place_V).to(logits_RV.dtype)
    return (hit_RV - torch.exp(logits_RV - normaliser_R[:, None])) * coefficients_R[:, None]


@dataclass(slots=True)
class _Gradients:
    """Sums over chunks, in fp32: of the hidden states (this rank's part) and of the weight."""

    hidden_RD: Tensor
    weight_VD: Tensor

    @classmethod
    def zeros(cls, hidden_RD: Tensor, weight_VD: Tensor) -> "_Gradients":
        return cls(torch.empty_like(hidden_RD), torch.zeros_like(weight_VD, dtype=torch.float32))

    def add(self, hidden_RD: Tensor, rows: slice, d_logits_RV: Tensor, head: Head) -> None:
        """Two products per block of the vocabulary."""
        d_hidden = torch.zeros_like(hidden_RD[rows], dtype=torch.float32)
        for block in head.blocks():
            d_block, part = d_logits_RV[:, block], head.weight_VD[block]
            _add_product(d_hidden, d_block, part.to(d_block.dtype))
            operand = hidden_RD[rows].to(d_block.dtype)
            _add_product(self.weight_VD[block], d_block.t(), operand)
        self.hidden_RD[rows] = d_hidden.to(self.hidden_RD.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to total, in fp32."""
    if left.dtype is torch.bfloat16:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left, right)


Coefficients = Callable[[Tensor, slice], Tensor]


def _walk(
    hidden_RD: Tensor, head: Head, targets_R: Tensor, coefficients: Coefficients | None
) -> tuple[Tensor, Tensor, _Gradients | None]:
    """Log-probabilities and entropies [R]; and, given what to weigh them with, gradients."""
    rows_total, vocabulary = hidden_RD.shape[0], head.weight_VD.shape[0]
    size = min(CHUNK_ROWS, rows_total)
    memory = torch.empty(size, vocabulary, dtype=torch.float32, device=hidden_RD.device)
    logprobs_R, entropy_R = memory.new_empty(rows_total), memory.new_empty(rows_total)
    gradients = _Gradients.zeros(hidden_RD, head.weight_VD) if coefficients else None
    for start in range(0, rows_total, size):
        rows = slice(start, min(start + size, rows_total))
        targets = targets_R[rows]
        logits = exact_logits(hidden_RD[rows], head.weight_VD, memory[: targets.shape[0]])
        scores = _scores(logits, targets, head)
        logprobs_R[rows], entropy_R[rows] = scores.logprobs_R, scores.entropy_R
        if coefficients is None or gradients is None:
            continue
        weights = coefficients(scores.logprobs_R, rows).float()
        first = head.first_token
        if logits.is_cuda:
            from m1.model.kernels import head_rows

            dtype = torch.bfloat16 if _on_tensor_cores(hidden_RD) else torch.float32
            normaliser = scores.normaliser_R
            d_logits = head_rows.gradient(logits, targets, (normaliser, weights), first, dtype)
        else:
            d_logits = _gradient(logits, targets, scores.normaliser_R, weights, first)
        gradients.add(hidden_RD, rows, d_logits, head)
    return logprobs_R, entropy_R, gradients


class _Logprobs(torch.autograd.Function):
    """The backward computes the logits again, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, group: Any
    ) -> tuple[Tensor, Tensor]:
        logprobs_R, entropy_R, _none = _walk(hidden_RD, Head(weight_VD, group), targets_R, None)
        ctx.save_for_backward(hidden_RD, weight_VD, targets_R)
        ctx.group = group
        ctx.mark_non_differentiable(entropy_R)
        return logprobs_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        head, d_logprobs_R = Head(weight, ctx.group), d[0]
        gradients = _walk(hidden, head, targets, lambda _logprobs, rows: d_logprobs_R[rows])[2]
        assert gradients is not None
        return gradients.hidden_RD, gradients.weight_VD.to(weight.dtype), None, None


class _Loss(torch.autograd.Function):
    """Gradients are made in the forward, where the logits are; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        targets_R: Tensor,
        objective: Objective,
        group: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses = []

        def coefficients(logprobs_R: Tensor, rows: slice) -> Tensor:
            with torch.enable_grad():
                leaf_R = logprobs_R.detach().requires_grad_()
                loss = objective(leaf_R, rows)
            losses.append(loss.detach())
            return torch.autograd.grad(loss, leaf_R)[0]

        head = Head(weight_VD, group)
        logprobs_R, entropy_R, gradients = _walk(hidden_RD, head, targets_R, coefficients)
        assert gradients is not None
        ctx.gradients = gradients.hidden_RD, gradients.weight_VD.to(weight_VD.dtype)
        ctx.mark_non_differentiable(logprobs_R, entropy_R)
        return torch.stack(losses).sum(), logprobs_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("head_loss: its gradients were handed out by an earlier backward")
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None  # the weight's may be gigabytes: scaled in place, handed out once
        return d_hidden.mul_(d[0]), d_weight.mul_(d[0]), None, None, None


def head_logprobs(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    *,
    group: distributed.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target (differentiable) and entropy (not), fp32 [R].

    Without gradients (old-policy log-probabilities) this is one product per weight part; with them
    the backward computes the logits again.

    Args:
        hidden_RD: final hidden states.
        weight_VD: this rank's part of the vocabulary.
        targets_R: token ids of the whole vocabulary.
        group: ranks that share the vocabulary. The gradient of `hidden_RD` is then this rank's
            part of a sum that the caller reduces, as for any column-parallel layer.
    """
    found: tuple[Tensor, Tensor] = _Logprobs.apply(hidden_RD, weight_VD, targets_R, group)
    return found


def head_loss(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    objective: Objective,
    *,
    group: distributed.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (differentiable), log-probabilities and entropies [R], in a single pass.

    Args:
        hidden_RD: as `head_logprobs`.
        weight_VD: as `head_logprobs`.
        targets_R: as `head_logprobs`.
        objective: the loss of some rows from their log-probabilities; summed over all of them. Any
            sum over tokens will do: minus their mean is cross-entropy, `m1.model.cispo` has CISPO.
        group: as `head_logprobs`.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Loss.apply(
        hidden_RD, weight_VD, targets_R, objective, group
    )
    return found

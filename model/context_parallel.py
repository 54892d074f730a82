"""Context parallelism: one window over several ranks, dealt so that causal work is even.

R ranks cut a window into 2 R chunks; rank r holds chunks r and 2 R - 1 - r, one cheap and one
expensive, in that order (Megatron's zig-zag). Document ids are never cut: a rank must know which
tokens of the others belong to its documents, and every rank reads the whole window anyway.

Shape letters: B windows, T tokens of a window.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional

WHOLE = "document_ids_BT"
PADDING_DOCUMENT = -1


def own_chunks(rank: int, ranks: int) -> tuple[int, int]:
    """The two chunks of a rank, numbered along the window."""
    return rank, 2 * ranks - 1 - rank


def take_own(x: Tensor, axis: int, *, rank: int, ranks: int) -> Tensor:
    """The part of a whole window that one rank holds.

    Raises:
        ValueError: the window is not a multiple of 2 x ranks tokens.
    """
    if ranks == 1:
        return x
    if x.shape[axis] % (2 * ranks):
        raise ValueError(
            f"window of {x.shape[axis]} tokens; accepted: a multiple of {2 * ranks} "
            f"under {ranks} context-parallel ranks"
        )
    chunks = x.chunk(2 * ranks, axis)
    return torch.cat([chunks[chunk] for chunk in own_chunks(rank, ranks)], axis)


def own_share(
    batch: Mapping[str, Tensor], *, rank: int, ranks: int, unit_tokens: int
) -> dict[str, Tensor]:
    """What one context-parallel rank computes of a micro batch.

    Args:
        batch: tensors named `*_BT` run along the window and are cut, all but the document ids.
        rank: of this process among the context-parallel ranks.
        ranks: context-parallel ranks.
        unit_tokens: windows are padded on the right to a multiple of this. Padding is a document
            of its own with a loss mask of zero.
    """
    padded = {
        name: _padded(x, unit_tokens, PADDING_DOCUMENT if name == WHOLE else 0)
        if name.endswith("_BT")
        else x
        for name, x in batch.items()
    }
    return {
        name: take_own(x, 1, rank=rank, ranks=ranks).contiguous()
        if name.endswith("_BT") and name != WHOLE
        else x
        for name, x in padded.items()
    }


def _padded(x_BT: Tensor, unit_tokens: int, value: int) -> Tensor:
    missing = -x_BT.shape[1] % unit_tokens
    return functional.pad(x_BT, (0, missing), value=value) if missing else x_BT


def _window_order(ranks: int) -> list[int]:
    """Where each chunk of the window stands when the ranks' parts are joined in rank order."""
    dealt = [chunk for rank in range(ranks) for chunk in own_chunks(rank, ranks)]
    return sorted(range(2 * ranks), key=dealt.__getitem__)


def _permuted(x: Tensor, order: list[int]) -> Tensor:
    """Chunks along the first axis in another order."""
    chunks = x.unflatten(0, (len(order), -1))
    return chunks[torch.tensor(order, device=x.device)].flatten(0, 1)


class _GatherWindow(torch.autograd.Function):
    """All ranks' parts in window order; gradients are summed and dealt back."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: ProcessGroup) -> Tensor:  # type: ignore[override]
        ranks = group.size()
        ctx.group = group
        joined = part.new_empty((ranks * part.shape[0], *part.shape[1:]))
        torch.distributed.all_gather_into_tensor(joined, part.contiguous(), group=group)
        return _permuted(joined, _window_order(ranks))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ranks = ctx.group.size()
        dealt = [chunk for rank in range(ranks) for chunk in own_chunks(rank, ranks)]
        by_rank = _permuted(grad, dealt).contiguous()
        own = grad.new_empty((grad.shape[0] // ranks, *grad.shape[1:]))
        torch.distributed.reduce_scatter_tensor(own, by_rank, group=ctx.group)
        return own, None


def gather_window(part: Tensor, group: ProcessGroup) -> Tensor:
    """The whole window from the parts of all ranks, along the first axis; differentiable."""
    whole: Tensor = _GatherWindow.apply(part, group)
    return whole

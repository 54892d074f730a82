"""Lightning attention over context-parallel ranks: one exchange of chunk states (LASP+).

Every rank computes its two chunks as if nothing came before them. The only thing the rest of the
window needs of a chunk is what it adds to the state, [W, W] per head whatever its length; these
are gathered, each rank sums the decayed states before its own chunks and adds what their queries
read from them. Source: 01 report section 3.3 (LASP+: all-gather, then a local prefix sum).

Shape letters: B batch, T tokens of this rank, H heads, W head width, C tokens per chunk, N chunks
of the window, M the two chunks of this rank.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from m1.model.context_parallel import gather_window, own_chunks, take_own

Attend = Callable[..., tuple[Tensor, Tensor]]


def lightning_over_ranks(
    attend: Attend,
    qkv_BHTW: tuple[Tensor, Tensor, Tensor],
    slopes_H: Tensor,
    document_ids_BT: Tensor | None,
    group: ProcessGroup,
) -> Tensor:
    """Output [B, H, T, W] of this rank's part of the window.

    Args:
        attend: `m1.model.lightning_attention.lightning_attention` or a kernel of its form; used
            from a zero state, so that it needs no gradient through its states.
        qkv_BHTW: activated queries, keys and values of this rank's two chunks.
        slopes_H: positive fp32 decay rates.
        document_ids_BT: of the whole window, or None when it is one document.
        group: the context-parallel ranks.
    """
    q, k, v = (x.unflatten(2, (2, -1)).movedim(2, 0) for x in qkv_BHTW)  # [M, B, H, C, W]
    size, own_ids, before_ids = q.shape[3], None, None
    if document_ids_BT is not None:
        whole = take_own(document_ids_BT, 1, rank=group.rank(), ranks=group.size())
        own_ids = whole.unflatten(1, (2, -1)).movedim(1, 0)  # [M, B, C]
        before_ids = _ids_before(document_ids_BT, size, group)
    added = _added(k, v, slopes_H, own_ids)
    states = gather_window(added, group)
    local, _ = attend(
        *(x.flatten(0, 1) for x in (q, k, v)),
        slopes_H,
        document_ids_BT=None if own_ids is None else own_ids.flatten(0, 1),
    )
    weights = _prefix_weights(slopes_H * size, document_ids_BT, size, group)
    before = torch.einsum("mbhn,nbhij->mbhij", weights.expand(-1, q.shape[1], -1, -1), states)
    output = local.view_as(q) + _read(q, before, slopes_H, own_ids, before_ids)
    return output.movedim(0, 2).flatten(2, 3)


def _ids_before(ids_BT: Tensor, size: int, group: ProcessGroup) -> Tensor:
    """Document of the token before each own chunk, [M, B]; the first chunk's own for chunk 0."""
    starts = [max(chunk * size - 1, 0) for chunk in own_chunks(group.rank(), group.size())]
    return ids_BT[:, starts].t()


def _added(k: Tensor, v: Tensor, slopes_H: Tensor, ids_MBC: Tensor | None) -> Tensor:
    """What each own chunk adds to the state at its end, fp32: only its last document counts."""
    steps = torch.arange(k.shape[3] - 1, -1, -1, device=k.device, dtype=torch.float32)
    decayed = k * torch.exp(-slopes_H[:, None] * steps)[..., None]
    if ids_MBC is not None:
        decayed = decayed * (ids_MBC == ids_MBC[..., -1:])[:, :, None, :, None]
    return decayed.float().transpose(-1, -2) @ v.float()


def _prefix_weights(
    chunk_slopes_H: Tensor, ids_BT: Tensor | None, size: int, group: ProcessGroup
) -> Tensor:
    """What is left of the state each chunk added when an own chunk starts, [M, B or 1, H, N]."""
    chunk = torch.arange(2 * group.size(), device=chunk_slopes_H.device, dtype=torch.float32)
    own = chunk[list(own_chunks(group.rank(), group.size()))]
    distance = own[:, None] - 1 - chunk  # [M, N]
    decay = torch.exp(-chunk_slopes_H[:, None] * distance.clamp(min=0)[:, None])
    weights = (decay * (distance >= 0)[:, None])[:, None]
    if ids_BT is not None:
        ends_BN = ids_BT[:, size - 1 :: size]
        same = ends_BN == _ids_before(ids_BT, size, group)[..., None]
        weights = weights * same[:, :, None]
    return weights


def _read(
    q: Tensor,
    before: Tensor,
    slopes_H: Tensor,
    ids_MBC: Tensor | None,
    before_ids_MB: Tensor | None,
) -> Tensor:
    """What the queries of the document that runs into a chunk read from the state before it."""
    steps = torch.arange(1, q.shape[3] + 1, device=q.device, dtype=torch.float32)
    decayed = q * torch.exp(-slopes_H[:, None] * steps)[..., None]
    if ids_MBC is not None and before_ids_MB is not None:
        decayed = decayed * (ids_MBC == before_ids_MB[..., None])[:, :, None, :, None]
    return (decayed.float() @ before).to(q.dtype)

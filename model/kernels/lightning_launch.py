"""What to launch for lightning attention: how a call is cut into programs, and their arguments.

Shape letters: B batch, T tokens, H heads, W head width, S segments.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from m1.model.kernels import lightning_scan

CHUNK_TOKENS = 64
LARGEST_WIDTH = 128
FORWARD_STAGES = 4
BACKWARD_STAGES = 3
CROWDED_STAGES = 2  # where registers are short two programs a processor beat deeper prefetching
FEWEST_SEGMENT_CHUNKS = 8  # ours: a shorter segment costs more in states than it gains


class Qkv(NamedTuple):
    """Queries, keys and values (or their gradients), [B, H, T, W] each, of any strides."""

    q: Tensor
    k: Tensor
    v: Tensor


_fitting_stages: dict[Any, int] = {}  # what was found to fit, by kernel and form


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call is cut into programs. All of it follows from shapes and the device."""

    batch: int
    heads: int
    length: int
    width: int
    segments: int
    segment_chunks: int
    slices: int
    constants: dict[str, Any]

    @property
    def pairs(self) -> int:
        """Batch rows times heads."""
        return self.batch * self.heads

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """What every kernel of the scan wants to know."""
        return self.length, self.width, self.heads, self.pairs, self.segment_chunks

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *args: Any, stages: int, **more: Any
    ) -> None:
        """Run `kernel` with that many chunks in flight, or as many as fit; fp32 leaves room for 1.

        Triton's versions differ in how much shared memory they take: 3.6 needs 136 KiB for a
        backward with three chunks in flight, 3.9 needs 240, more than a Hopper chip has.
        """
        if self.constants["DTYPE"] is not triton.language.bfloat16:
            stages = 1
        known = (id(kernel), stages, tuple(more.values()), self.constants["WIDTH"])
        for fewer in range(_fitting_stages.get(known, stages), 0, -1):
            try:
                kernel[grid](*args, **more, **self.constants, num_stages=fewer)
            except OutOfResources:
                if fewer == 1:
                    raise
                continue
            _fitting_stages[known] = fewer
            return


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # the interpreter: enough that few heads are cut into segments
    return torch.cuda.get_device_properties(device).multi_processor_count


def make_plan(q_BHTW: Tensor) -> Plan:
    """Cut the sequence only where heads alone would leave much of the chip without work."""
    batch, heads, length, width = q_BHTW.shape
    padded = max(32, triton.next_power_of_2(width))
    columns = min(padded // 2, 64)
    slices = triton.cdiv(width, columns)
    chunks = triton.cdiv(length, CHUNK_TOKENS)
    programs, processors = slices * batch * heads, _multiprocessors(q_BHTW.device)
    wanted = 1 if 4 * programs > 3 * processors else 2 * processors // programs
    segments = max(1, min(wanted, chunks // FEWEST_SEGMENT_CHUNKS))
    segment_chunks = triton.cdiv(chunks, segments)
    is_bf16 = q_BHTW.dtype is torch.bfloat16
    return Plan(
        batch=batch,
        heads=heads,
        length=length,
        width=width,
        segments=triton.cdiv(chunks, segment_chunks),
        segment_chunks=segment_chunks,
        slices=slices,
        constants={
            "DTYPE": triton.language.bfloat16 if is_bf16 else triton.language.float32,
            "CHUNK": CHUNK_TOKENS,
            "WIDTH": padded,
            "SLICE": columns,
            "num_warps": 4 if is_bf16 else 8,
        },
    )


def _tiles(x_BHTW: Tensor, columns: int) -> TensorDescriptor:
    """How the copy engine reads [CHUNK, columns] of one head."""
    block = [1, 1, CHUNK_TOKENS, columns]
    return TensorDescriptor(x_BHTW, list(x_BHTW.shape), list(x_BHTW.stride()), block)


@dataclass(frozen=True, slots=True)
class Documents:
    """Where each token's document begins and ends (one past its last token), int32 [B, T]."""

    starts_BT: Tensor
    ends_BT: Tensor


def find_documents(ids_BT: Tensor | None) -> Documents | None:
    """The bounds of runs of equal ids; None for None."""
    if ids_BT is None:
        return None
    length = ids_BT.shape[1]
    place_T = torch.arange(length, dtype=torch.int32, device=ids_BT.device)
    is_first = functional.pad(ids_BT[:, 1:] != ids_BT[:, :-1], (1, 0), value=True)
    is_last = functional.pad(is_first[:, 1:], (0, 1), value=True)
    starts = torch.where(is_first, place_T, 0).cummax(1).values
    ends = torch.where(is_last, place_T + 1, length).flip(1).cummin(1).values.flip(1)
    return Documents(starts, ends.contiguous())


Saved = tuple[Tensor, Documents | None, Tensor | None]


def _bounds(documents: Documents | None, other: Tensor) -> tuple[Tensor, Tensor]:
    """What kernels are given: a stand-in that is never read if each row is one document."""
    if documents is None:
        return other, other
    return documents.starts_BT, documents.ends_BT


def segment_states(
    plan: Plan,
    bc: tuple[Tensor, Tensor],
    slopes_H: Tensor,
    documents: Documents | None,
    start_BHWW: Tensor | None,
    *,
    reverse: bool,
) -> Tensor | None:
    """The state each segment starts from, [S, B, H, W, W]; None if it is zero and S is 1."""
    if plan.segments == 1:
        return None if start_BHWW is None else start_BHWW[None]
    shape = (plan.segments, plan.batch, plan.heads, plan.width, plan.width)
    states = torch.empty(shape, dtype=torch.float32, device=bc[0].device)
    starts, ends = _bounds(documents, slopes_H)
    constants = plan.constants
    plan.launch(
        lightning_scan.segment_kernel,
        (plan.slices, plan.pairs, plan.segments),
        _tiles(bc[0], constants["WIDTH"]),
        _tiles(bc[1], constants["SLICE"]),
        slopes_H,
        starts,
        ends,
        states,
        *plan.sizes,
        REVERSE=reverse,
        PACKED=documents is not None,
        stages=BACKWARD_STAGES,
    )
    state_size, block = plan.width**2, 1024
    lightning_scan.combine_kernel[(triton.cdiv(state_size, block), plan.pairs)](
        states,
        states if start_BHWW is None else start_BHWW,
        slopes_H,
        starts,
        plan.length,
        state_size,
        plan.heads,
        plan.pairs,
        plan.segments,
        plan.segment_chunks * CHUNK_TOKENS,
        REVERSE=reverse,
        PACKED=documents is not None,
        HAS_START=start_BHWW is not None,
        BLOCK=block,
    )
    return states


def scan_forward(
    x: Qkv, slopes_H: Tensor, documents: Documents | None, initial_BHWW: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output [B, H, T, W] (stored token by token), final state, states at segment starts."""
    plan = make_plan(x.q)
    constants = plan.constants
    states = segment_states(plan, (x.k, x.v), slopes_H, documents, initial_BHWW, reverse=False)
    output = x.q.new_empty(plan.length, plan.batch, plan.heads, plan.width).permute(1, 2, 0, 3)
    final = slopes_H.new_empty(plan.batch, plan.heads, plan.width, plan.width)
    starts, ends = _bounds(documents, slopes_H)
    plan.launch(
        lightning_scan.forward_kernel,
        (plan.slices, plan.pairs, plan.segments),
        _tiles(x.q, constants["WIDTH"]),
        _tiles(x.k, constants["WIDTH"]),
        _tiles(x.v, constants["SLICE"]),
        _tiles(output, constants["SLICE"]),
        slopes_H,
        starts,
        ends,
        final if states is None else states,
        final,
        *plan.sizes,
        PACKED=documents is not None,
        HAS_STATE=states is not None,
        stages=FORWARD_STAGES,
    )
    return output, final, states


def scan_backward(
    x: Qkv,
    gradients: Qkv,
    before_silu: Qkv | None,
    d_outputs: tuple[Tensor, Tensor],
    saved: Saved,
) -> Tensor:
    """Fill `gradients` (of `before_silu` if given); returns that of the initial state.

    `d_outputs` are the gradients of output and final state; `saved` is (slopes, documents, states
    at segment starts) of the forward.
    """
    slopes_H, documents, states = saved
    d_output, d_final = d_outputs
    plan = make_plan(x.q)
    constants = plan.constants
    d_states = segment_states(plan, (x.q, d_output), slopes_H, documents, d_final, reverse=True)
    d_initial = slopes_H.new_empty(plan.batch, plan.heads, plan.width, plan.width)
    starts, ends = _bounds(documents, slopes_H)
    # every tensor is read whole by one scan and by halves by another; the halves of q, k and v
    # and of d_output come as [CHUNK, SLICE] tiles of a second descriptor
    wide, narrow = constants["WIDTH"], constants["SLICE"]
    pre = x if before_silu is None else before_silu
    is_crowded = before_silu is not None or documents is not None
    plan.launch(
        lightning_scan.backward_kernel,
        (3 * plan.slices * plan.pairs * plan.segments,),
        *(_tiles(tensor, wide) for tensor in (*x, d_output)),
        *(_tiles(tensor, narrow) for tensor in (x.q, x.k, d_output)),
        *(_tiles(tensor, narrow) for tensor in gradients),
        *pre,
        slopes_H,
        starts,
        ends,
        d_initial if states is None else states,
        d_initial if d_states is None else d_states,
        d_initial,
        *plan.sizes,
        plan.slices,
        plan.segments,
        pre.q.stride()[:3],
        PACKED=documents is not None,
        HAS_STATE=states is not None,
        HAS_D_STATE=d_states is not None,
        HAS_PRE=before_silu is not None,
        stages=CROWDED_STAGES if is_crowded else BACKWARD_STAGES,
    )
    return d_initial

"""Lightning attention on CUDA: what to launch, and its gradients.

Two numbers per token and head, width W = 128, chunks of C = 64 tokens, bf16 (a tensor: 2 W bytes):

- forward: 4 C W + 4 W^2 = 98 304 FLOPs (131 072 as done: both halves of a head compute its
  scores), at least 1024 bytes (q, k, v in, o out), which is also what is moved;
- backward: 10 C W + 10 W^2 = 245 760 FLOPs, at least 1792 bytes; moved 2560 (dk and dv share
  their loads through the L2 cache, dq goes the other way).

The twin in plain torch is `m1.model.lightning_attention`, which calls this for CUDA tensors.

Shape letters: B batch, T tokens, H heads, W head width, S segments.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional
from triton.tools.tensor_descriptor import TensorDescriptor

from m1.model.kernels import lightning_scan

CHUNK_TOKENS = 64
LARGEST_WIDTH = 128
FORWARD_STAGES = 4
BACKWARD_STAGES = 3
FEWEST_SEGMENT_CHUNKS = 8  # ours: a shorter segment costs more in states than it gains


def is_supported(q_BHTW: Tensor) -> bool:
    """Whether the kernels take heads of this width and type: multiples of 8, up to 128."""
    width = q_BHTW.shape[-1]
    is_known_type = q_BHTW.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return is_known_type and width % 8 == 0 and width <= LARGEST_WIDTH and q_BHTW.shape[2] > 0


class Qkv(NamedTuple):
    """Queries, keys and values (or their gradients), [B, H, T, W] each, of any strides."""

    q: Tensor
    k: Tensor
    v: Tensor


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


def _aligned(x: Tensor) -> Tensor:
    """`x` itself where the copy engine can read it (16-byte rows), else a copy."""
    item = x.element_size()
    is_aligned = x.data_ptr() % 16 == 0 and all(s * item % 16 == 0 for s in x.stride()[:-1])
    return x if is_aligned and x.stride(-1) == 1 else x.contiguous()


def _identity(ids_BT: Tensor | None, other: Tensor) -> tuple[Tensor, int]:
    """Document ids with their row stride; a stand-in that is never read if there are none."""
    return (other, 0) if ids_BT is None else (ids_BT, ids_BT.stride(0))


def segment_states(
    plan: Plan,
    b_BHTW: Tensor,
    c_BHTW: Tensor,
    slopes_H: Tensor,
    ids_BT: Tensor | None,
    start_BHWW: Tensor | None,
    *,
    reverse: bool,
) -> Tensor | None:
    """The state each segment starts from, [S, B, H, W, W]; None if it is zero and S is 1."""
    if plan.segments == 1:
        return None if start_BHWW is None else start_BHWW[None]
    shape = (plan.segments, plan.batch, plan.heads, plan.width, plan.width)
    states = torch.empty(shape, dtype=torch.float32, device=b_BHTW.device)
    ids, id_stride = _identity(ids_BT, slopes_H)
    constants = plan.constants
    lightning_scan.segment_kernel[(plan.slices, plan.pairs, plan.segments)](
        _tiles(b_BHTW, constants["WIDTH"]),
        _tiles(c_BHTW, constants["SLICE"]),
        slopes_H,
        ids,
        states,
        *plan.sizes,
        id_stride,
        REVERSE=reverse,
        HAS_IDS=ids_BT is not None,
        num_stages=3 if constants["num_warps"] == 4 else 1,
        **constants,
    )
    state_size, block = plan.width**2, 1024
    lightning_scan.combine_kernel[(triton.cdiv(state_size, block), plan.pairs)](
        states,
        states if start_BHWW is None else start_BHWW,
        slopes_H,
        ids,
        plan.length,
        state_size,
        plan.heads,
        plan.pairs,
        plan.segments,
        plan.segment_chunks * CHUNK_TOKENS,
        id_stride,
        REVERSE=reverse,
        HAS_IDS=ids_BT is not None,
        HAS_START=start_BHWW is not None,
        BLOCK=block,
    )
    return states


def scan_forward(
    x: Qkv, slopes_H: Tensor, ids_BT: Tensor | None, initial_BHWW: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output [B, H, T, W] (stored token by token), final state, states at segment starts."""
    plan = make_plan(x.q)
    constants = plan.constants
    states = segment_states(plan, x.k, x.v, slopes_H, ids_BT, initial_BHWW, reverse=False)
    output = x.q.new_empty(plan.length, plan.batch, plan.heads, plan.width).permute(1, 2, 0, 3)
    final = slopes_H.new_empty(plan.batch, plan.heads, plan.width, plan.width)
    ids, id_stride = _identity(ids_BT, slopes_H)
    lightning_scan.forward_kernel[(plan.slices, plan.pairs, plan.segments)](
        _tiles(x.q, constants["WIDTH"]),
        _tiles(x.k, constants["WIDTH"]),
        _tiles(x.v, constants["SLICE"]),
        _tiles(output, constants["SLICE"]),
        slopes_H,
        ids,
        final if states is None else states,
        final,
        *plan.sizes,
        id_stride,
        HAS_IDS=ids_BT is not None,
        HAS_STATE=states is not None,
        num_stages=FORWARD_STAGES if constants["num_warps"] == 4 else 1,
        **constants,
    )
    return output, final, states


def scan_backward(
    x: Qkv,
    gradients: Qkv,
    before_silu: Qkv | None,
    d_output: Tensor,
    d_final: Tensor | None,
    saved: tuple[Tensor, Tensor | None, Tensor | None],
) -> Tensor:
    """Fill `gradients` (of `before_silu` if given); returns that of the initial state.

    `saved` is (slopes, document ids, states at segment starts) of the forward.
    """
    slopes_H, ids_BT, states = saved
    plan = make_plan(x.q)
    constants = plan.constants
    d_states = segment_states(plan, x.q, d_output, slopes_H, ids_BT, d_final, reverse=True)
    d_initial = slopes_H.new_empty(plan.batch, plan.heads, plan.width, plan.width)
    ids, id_stride = _identity(ids_BT, slopes_H)
    # every tensor is read whole by one scan and by halves by another; the halves of q, k and v
    # and of d_output come as [CHUNK, SLICE] tiles of a second descriptor
    wide, narrow = constants["WIDTH"], constants["SLICE"]
    pre = x if before_silu is None else before_silu
    lightning_scan.backward_kernel[(3 * plan.slices * plan.pairs * plan.segments,)](
        *(_tiles(tensor, wide) for tensor in (*x, d_output)),
        *(_tiles(tensor, narrow) for tensor in (x.q, x.k, d_output)),
        *(_tiles(tensor, narrow) for tensor in gradients),
        *(_tiles(tensor, narrow) for tensor in pre),
        slopes_H,
        ids,
        d_initial if states is None else states,
        d_initial if d_states is None else d_states,
        d_initial,
        *plan.sizes,
        id_stride,
        plan.slices,
        plan.segments,
        HAS_IDS=ids_BT is not None,
        HAS_STATE=states is not None,
        HAS_D_STATE=d_states is not None,
        HAS_PRE=before_silu is not None,
        num_stages=BACKWARD_STAGES if constants["num_warps"] == 4 else 1,
        **constants,
    )
    return d_initial


class _Attention(torch.autograd.Function):
    """Attention of separate q, k and v."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        slopes_H: Tensor,
        ids_BT: Tensor | None,
        initial_BHWW: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        x = Qkv(_aligned(q), _aligned(k), _aligned(v))
        output, final, states = scan_forward(x, slopes_H, ids_BT, initial_BHWW)
        ctx.save_for_backward(*x, slopes_H, ids_BT, states)
        ctx.has_initial = initial_BHWW is not None
        return output, final

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        *x, slopes_H, ids_BT, states = ctx.saved_tensors
        gradients = Qkv(*(torch.empty_like(tensor) for tensor in x))
        saved = (slopes_H, ids_BT, states)
        d_output, d_final = _aligned(d[0]), d[1].contiguous()
        d_initial = scan_backward(Qkv(*x), gradients, None, d_output, d_final, saved)
        return *gradients, None, None, d_initial if ctx.has_initial else None


class _SiluAttention(torch.autograd.Function):
    """Attention of SiLU(qkv); one buffer of gradients, SiLU's derivative applied on the way out."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_TBHX: Tensor,
        slopes_H: Tensor,
        ids_BT: Tensor | None,
        initial_BHWW: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        active = functional.silu(qkv_TBHX)
        output, final, states = scan_forward(split(active), slopes_H, ids_BT, initial_BHWW)
        ctx.save_for_backward(qkv_TBHX, active, slopes_H, ids_BT, states)
        ctx.has_initial = initial_BHWW is not None
        return output, final

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        qkv, active, *saved = ctx.saved_tensors
        gradient = torch.empty_like(qkv)
        d_output, d_final = _aligned(d[0]), d[1].contiguous()
        d_initial = scan_backward(
            split(active), split(gradient), split(qkv), d_output, d_final, tuple(saved)
        )
        return gradient, None, None, d_initial if ctx.has_initial else None


def split(qkv_TBHX: Tensor) -> Qkv:
    """Views [B, H, T, W] of the three parts of a projection's [T, B, H, 3 W]."""
    return Qkv(*qkv_TBHX.permute(1, 2, 0, 3).chunk(3, -1))


def attention(
    x: Qkv, slopes_H: Tensor, ids_BT: Tensor | None, initial_BHWW: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `m1.model.lightning_attention.lightning_attention`."""
    output: tuple[Tensor, Tensor] = _Attention.apply(*x, slopes_H, ids_BT, initial_BHWW)
    return output


def silu_attention(
    qkv_TBHX: Tensor, slopes_H: Tensor, ids_BT: Tensor | None, initial_BHWW: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `m1.model.lightning_attention.silu_lightning_attention`."""
    output: tuple[Tensor, Tensor] = _SiluAttention.apply(qkv_TBHX, slopes_H, ids_BT, initial_BHWW)
    return output

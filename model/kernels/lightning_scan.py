"""The Triton side of lightning attention: one decayed scan, used four times.

    scan(a, b, c)_t = sum over u <= t of exp(-s (t - u)) (a_t . b_u) c_u

    o = scan(q, k, v)            dq = scan(do, v, k)
    dv = reverse scan(k, q, do)  dk = reverse scan(v, do, q)

A program owns one head, one segment of the sequence and half of c's columns. It walks the chunks in
order (or backwards) with its [W, W/2] part of the state in fp32 registers: nothing is written per
chunk, no atomics, so two runs give the same bits. Loads of a and b by both halves of a head meet
in the L2 cache.

Decay costs one scaling of c and one of the output: inside a chunk of C tokens, with m = C / 2,
exp(-s (i - j)) = exp(-s (i - m)) exp(s (j - m)), and the state is carried as
S exp(-s (m + 1)), so that one scaled c serves the scores and the state, whose decay from chunk to
chunk is one constant. That holds in fp32 and bf16 for s <= 2; MiniMax's slopes are at most 1.
"""

import triton
import triton.language as tl


@triton.jit
def _dot(x, y, accumulator, dtype: tl.constexpr):
    """Product of x and y in `dtype` with fp32 accumulation; fp32 stays fp32 (no TF32)."""
    return tl.dot(x.to(dtype), y.to(dtype), accumulator, input_precision="ieee")


@triton.jit
def _tile(descriptor, batch, head, token, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] of a [B, H, T, W] tensor; zeros outside of it."""
    return descriptor.load([batch, head, token, column]).reshape(ROWS, COLUMNS)


@triton.jit
def _state_places(row, column, width, TRANSPOSED: tl.constexpr):
    """Offsets into one [W, W] state, and which of them are inside."""
    inside = (row[:, None] < width) & (column[None, :] < width)
    if TRANSPOSED:
        return column[None, :] * width + row[:, None], inside
    return row[:, None] * width + column[None, :], inside


@triton.jit
def _scan(
    a, b, c, out, pre,
    state, slope, ids, batch, head, column, first_chunk, last_chunk, length,
    REVERSE: tl.constexpr, WRITES: tl.constexpr, HAS_IDS: tl.constexpr, HAS_PRE: tl.constexpr,
    DTYPE: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Walk chunks first_chunk .. last_chunk - 1; returns the scaled state after them.

    `pre` is what SiLU was applied to to give the forward's c: the output is then multiplied by
    SiLU's derivative there. Without WRITES only the state is wanted.
    """
    row = tl.arange(0, CHUNK)
    middle: tl.constexpr = CHUNK // 2
    centred = (middle - row if REVERSE else row - middle).to(tl.float32)
    grow, shrink = tl.exp(slope * centred), tl.exp(-slope * centred)
    decay = tl.exp(-slope * CHUNK)
    causal = row[:, None] <= row[None, :] if REVERSE else row[:, None] >= row[None, :]

    for step in range(first_chunk, last_chunk):
        chunk = first_chunk + last_chunk - 1 - step if REVERSE else step
        token = chunk * CHUNK
        b_tile = _tile(b, batch, head, token, 0, CHUNK, WIDTH)
        c_tile = _tile(c, batch, head, token, column, CHUNK, SLICE)
        scaled = (c_tile * grow[:, None]).to(DTYPE)
        into_state = scaled
        if HAS_IDS:
            own = tl.load(ids + token + row, mask=token + row < length, other=-1)
            start, end = tl.maximum(token - 1, 0), tl.minimum(token + CHUNK, length) - 1
            if REVERSE:
                start, end = tl.minimum(token + CHUNK, length - 1), token
            before, last = tl.load(ids + start), tl.load(ids + end)
            into_state = tl.where((own == last)[:, None], scaled, 0.0).to(DTYPE)
        state *= tl.where(step == first_chunk, 1.0, decay)
        if WRITES:
            a_tile = _tile(a, batch, head, token, 0, CHUNK, WIDTH)
            scores = _dot(a_tile, tl.trans(b_tile), None, DTYPE)
            allowed = causal
            output = _dot(a_tile, state, None, DTYPE)
            if HAS_IDS:
                allowed = causal & (own[:, None] == own[None, :])
                output = tl.where((own == before)[:, None], output, 0.0)
            output = _dot(tl.where(allowed, scores, 0.0), scaled, output, DTYPE)
            output *= shrink[:, None]
            if HAS_PRE:
                x = _tile(pre, batch, head, token, column, CHUNK, SLICE).to(tl.float32)
                gate = tl.sigmoid(x)
                output *= gate * (1.0 + x * (1.0 - gate))
            result = output.to(out.dtype).reshape(1, 1, CHUNK, SLICE)
            out.store([batch, head, token, column], result)
        if HAS_IDS:
            state = tl.where(before == last, state, 0.0)
        state = _dot(tl.trans(b_tile), into_state, state, DTYPE)
    return state


@triton.jit
def _load_state(states, place, inside, HAS_STATE: tl.constexpr, scale):
    if HAS_STATE:
        return tl.load(states + place, mask=inside, other=0.0) * scale
    return tl.zeros(place.shape, tl.float32)


@triton.jit
def _at_start(slope, CHUNK: tl.constexpr):
    """Scale of a carried state where tokens begin: S exp(-s (m + 1)); also for reverse scans."""
    return tl.exp(-slope * (CHUNK // 2 + 1))


@triton.jit
def _at_end(slope, last_chunk, length, CHUNK: tl.constexpr):
    """To a state (forward) or from one (reverse) where tokens end; the last chunk may be short."""
    tokens = tl.minimum(length - (last_chunk - 1) * CHUNK, CHUNK)
    return tl.exp(slope * (CHUNK // 2 + 1 - tokens))


@triton.jit
def _range_of_segment(segment, segment_chunks, length, CHUNK: tl.constexpr):
    first = segment * segment_chunks
    return first, tl.minimum(first + segment_chunks, tl.cdiv(length, CHUNK))


@triton.jit
def forward_kernel(
    q, k, v, out, slopes, ids, states, final,
    length, width, heads, pairs, segment_chunks, id_stride,
    HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr, DTYPE: tl.constexpr,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Outputs of one (slice, batch x head, segment), and the final state from the last segment."""
    column, pair, segment = tl.program_id(0) * SLICE, tl.program_id(1), tl.program_id(2)
    batch, head = pair // heads, pair % heads
    slope = tl.load(slopes + head)
    row = tl.arange(0, WIDTH)
    place, inside = _state_places(row, column + tl.arange(0, SLICE), width, False)
    state_size = (width * width).to(tl.int64)
    before = states + (segment * pairs + pair) * state_size
    state = _load_state(before, place, inside, HAS_STATE, _at_start(slope, CHUNK))
    first, last = _range_of_segment(segment, segment_chunks, length, CHUNK)
    state = _scan(
        q, k, v, out, q, state, slope, ids + batch * id_stride, batch, head, column,
        first, last, length,
        False, True, HAS_IDS, False, DTYPE, CHUNK, WIDTH, SLICE,
    )  # fmt: skip
    if segment == tl.num_programs(2) - 1:
        state *= _at_end(slope, last, length, CHUNK)
        tl.store(final + pair * state_size + place, state, mask=inside)


@triton.jit
def segment_kernel(
    b, c, slopes, ids, states,
    length, width, heads, pairs, segment_chunks, id_stride,
    REVERSE: tl.constexpr, HAS_IDS: tl.constexpr, DTYPE: tl.constexpr,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """What each segment alone adds to the state at its end (REVERSE: before its start)."""
    column, pair, segment = tl.program_id(0) * SLICE, tl.program_id(1), tl.program_id(2)
    batch, head = pair // heads, pair % heads
    slope = tl.load(slopes + head)
    place, inside = _state_places(
        tl.arange(0, WIDTH), column + tl.arange(0, SLICE), width, False
    )
    first, last = _range_of_segment(segment, segment_chunks, length, CHUNK)
    state = _scan(
        b, b, c, b, b, tl.zeros([WIDTH, SLICE], tl.float32), slope, ids + batch * id_stride,
        batch, head, column, first, last, length,
        REVERSE, False, HAS_IDS, False, DTYPE, CHUNK, WIDTH, SLICE,
    )  # fmt: skip
    state *= _at_start(slope, CHUNK) if REVERSE else _at_end(slope, last, length, CHUNK)
    target = states + (segment * pairs + pair) * (width * width).to(tl.int64)
    tl.store(target + place, state, mask=inside)


@triton.jit
def combine_kernel(
    states, start, slopes, ids,
    length, state_size, heads, pairs, segments, segment_tokens, id_stride,
    REVERSE: tl.constexpr, HAS_IDS: tl.constexpr, HAS_START: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace what segments add by the state they start from, in place."""
    place, pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    batch, head = pair // heads, pair % heads
    inside = place < state_size
    slope = tl.load(slopes + head)
    ids += batch * id_stride
    state = tl.zeros([BLOCK], tl.float32)
    if HAS_START:
        state = tl.load(start + pair * state_size.to(tl.int64) + place, mask=inside, other=0.0)
    for step in range(segments):
        segment = segments - 1 - step if REVERSE else step
        first = segment * segment_tokens
        end = tl.minimum(first + segment_tokens, length)
        decay = tl.exp(-slope * (end - first))
        if HAS_IDS:
            before = tl.minimum(end, length - 1) if REVERSE else tl.maximum(first - 1, 0)
            last = first if REVERSE else end - 1
            decay = tl.where(tl.load(ids + before) == tl.load(ids + last), decay, 0.0)
        here = states + (segment * pairs + pair) * state_size.to(tl.int64) + place
        added = tl.load(here, mask=inside, other=0.0)
        tl.store(here, state, mask=inside)
        state = state * decay + added


@triton.jit
def backward_kernel(
    q, k, v, d_out, q_slice, k_slice, d_out_slice, d_q, d_k, d_v, pre_q, pre_k, pre_v,
    slopes, ids, states, d_states, d_initial,
    length, width, heads, pairs, segment_chunks, id_stride, slices, segments,
    HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr, HAS_D_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr, DTYPE: tl.constexpr,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """dk and dv of all heads first, side by side (they read the same tiles), then dq."""
    program = tl.program_id(0)
    reverse_programs = 2 * slices * pairs * segments
    is_dq = program >= reverse_programs
    index = tl.where(is_dq, program - reverse_programs, program // 2)
    column = (index % slices) * SLICE
    pair, segment = (index // slices) % pairs, index // (slices * pairs)
    batch, head = pair // heads, pair % heads
    slope = tl.load(slopes + head)
    ids += batch * id_stride
    row, columns = tl.arange(0, WIDTH), column + tl.arange(0, SLICE)
    state_size = (width * width).to(tl.int64)
    offset = (segment * pairs + pair) * state_size
    first, last = _range_of_segment(segment, segment_chunks, length, CHUNK)
    if is_dq:
        place, inside = _state_places(row, columns, width, True)
        state = _load_state(states + offset, place, inside, HAS_STATE, _at_start(slope, CHUNK))
        _scan(
            d_out, v, k_slice, d_q, pre_q, state, slope, ids, batch, head, column,
            first, last, length,
            False, True, HAS_IDS, HAS_PRE, DTYPE, CHUNK, WIDTH, SLICE,
        )  # fmt: skip
    elif program % 2 == 0:
        scale = _at_end(slope, last, length, CHUNK)
        place, inside = _state_places(row, columns, width, True)
        state = _load_state(d_states + offset, place, inside, HAS_D_STATE, scale)
        _scan(
            v, d_out, q_slice, d_k, pre_k, state, slope, ids, batch, head, column,
            first, last, length,
            True, True, HAS_IDS, HAS_PRE, DTYPE, CHUNK, WIDTH, SLICE,
        )  # fmt: skip
    else:
        scale = _at_end(slope, last, length, CHUNK)
        place, inside = _state_places(row, columns, width, False)
        state = _load_state(d_states + offset, place, inside, HAS_D_STATE, scale)
        state = _scan(
            k, q, d_out_slice, d_v, pre_v, state, slope, ids, batch, head, column,
            first, last, length,
            True, True, HAS_IDS, HAS_PRE, DTYPE, CHUNK, WIDTH, SLICE,
        )  # fmt: skip
        if segment == 0:
            state *= _at_start(slope, CHUNK)
            tl.store(d_initial + pair * state_size + place, state, mask=inside)

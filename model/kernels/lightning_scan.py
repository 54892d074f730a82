"""The Triton side of lightning attention: one decayed scan, used four times.

    scan(a, b, c)_t = sum over u <= t of exp(-s (t - u)) (a_t . b_u) c_u

    o = scan(q, k, v)            dq = scan(do, v, k)
    dv = reverse scan(k, q, do)  dk = reverse scan(v, do, q)

A program owns one head, one segment of the sequence and half of c's columns. It walks the chunks in
order (or backwards) with its [W, W/2] part of the state in fp32 registers: nothing is written per
chunk, no atomics, so two runs give the same bits. Loads of a and b by both halves of a head meet
in the L2 cache.

Packed documents: `starts` and `ends` [B, T] hold where each token's document begins and ends (one
past its last token). The state in hand belongs to the document of the token just walked.
"""
# Triton's language has no annotations, and its kernels take what they need one by one.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

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
def _silu_slope(x):
    """Derivative of SiLU; the reciprocal by way of rsqrt is one instruction."""
    root = tl.rsqrt(1.0 + tl.exp(-x))
    gate = root * root
    return gate * (1.0 + x * (1.0 - gate))


@triton.jit
def _state_places(row, column, width, TRANSPOSED: tl.constexpr):
    """Offsets into one [W, W] state, and which of them are inside."""
    inside = (row[:, None] < width) & (column[None, :] < width)
    if TRANSPOSED:
        return column[None, :] * width + row[:, None], inside
    return row[:, None] * width + column[None, :], inside


@triton.jit
def _load_documents(starts, ends, chunk, length, CHUNK: tl.constexpr, REVERSE: tl.constexpr):
    """Bounds of the documents of a chunk's tokens, and of the last one that the scan meets.

    Nothing is computed from them yet, so that nothing waits for memory. A chunk past the row's end
    may be asked for.
    """
    token = chunk * CHUNK
    place = tl.minimum(tl.maximum(token + tl.arange(0, CHUNK), 0), length - 1)
    start, end = tl.load(starts + place), tl.load(ends + place)
    if REVERSE:
        return start, end, tl.load(ends + tl.maximum(token, 0))
    return start, end, tl.load(starts + tl.minimum(token + CHUNK, length) - 1)


@triton.jit
def _masks(start, end, farthest, token, length, CHUNK: tl.constexpr, REVERSE: tl.constexpr):
    """How a chunk's tokens meet their documents, for a scan that comes from one side.

    Returns the furthest place in the chunk each token sees; whether the state before the chunk is
    of its document; whether its document goes on after the chunk; whether the state's document
    does. At the outer ends of the row the state counts as the neighbour's.
    """
    after = tl.minimum(token + CHUNK, length)
    if REVERSE:
        reaches = tl.minimum(after, length - 1)
        return end - token, end > reaches, start <= token, farthest > reaches
    reaches = tl.maximum(token, 1)
    return start - token, start < reaches, end >= after, farthest < reaches


@triton.jit
def _load_before_silu(
    pre,
    strides,
    batch,
    head,
    token,
    column,
    length,
    width,
    CHUNK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """[CHUNK, SLICE] by ordinary loads, which later instructions need not wait for."""
    batch_stride, head_stride, token_stride = strides
    row, place = token + tl.arange(0, CHUNK), column + tl.arange(0, SLICE)
    base = pre + batch * batch_stride + head * head_stride
    inside = (row[:, None] < length) & (place[None, :] < width)
    offsets = row[:, None].to(tl.int64) * token_stride + place[None, :]
    return tl.load(base + offsets, mask=inside, other=0.0)


@triton.jit
def _scan(
    a, b, c, out, pre, strides,
    state, slope, starts, ends, batch, head, column, first_chunk, last_chunk, length, width,
    REVERSE: tl.constexpr, WRITES: tl.constexpr, PACKED: tl.constexpr, HAS_PRE: tl.constexpr,
    DTYPE: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Walk chunks first_chunk .. last_chunk - 1; returns the state after them.

    `pre` is what SiLU was applied to to give the forward's c: the output is then multiplied by
    SiLU's derivative there. Without WRITES only the state is wanted.
    """
    row = tl.arange(0, CHUNK)
    distance = row[None, :] - row[:, None] if REVERSE else row[:, None] - row[None, :]
    within = tl.where(distance >= 0, tl.exp(-slope * tl.maximum(distance, 0)), 0.0)
    direction: tl.constexpr = -1 if REVERSE else 1
    start_chunk = last_chunk - 1 if REVERSE else first_chunk
    if PACKED:
        start, end, farthest = _load_documents(starts, ends, start_chunk, length, CHUNK, REVERSE)

    for step in range(last_chunk - first_chunk):
        chunk = start_chunk + direction * step
        token = chunk * CHUNK
        tokens = tl.minimum(length - token, CHUNK)
        before, after = (row + 1).to(tl.float32), tl.maximum(tokens - 1 - row, 0).to(tl.float32)
        from_state = tl.exp(-slope * (after if REVERSE else before))
        to_state = tl.exp(-slope * (before if REVERSE else after))
        decay = tl.exp(-slope * tokens)
        if PACKED:
            sees, is_seen, lasts, survives = _masks(
                start, end, farthest, token, length, CHUNK, REVERSE
            )
            from_state = tl.where(is_seen, from_state, 0.0)
            to_state = tl.where(lasts, to_state, 0.0)
            decay = tl.where(survives, decay, 0.0)
            place = row[None, :]
            allowed = place < sees[:, None] if REVERSE else place >= sees[:, None]
            start, end, farthest = _load_documents(
                starts, ends, chunk + direction, length, CHUNK, REVERSE
            )
        if HAS_PRE:
            x = _load_before_silu(
                pre, strides, batch, head, token, column, length, width, CHUNK, SLICE
            )
        b_tile = _tile(b, batch, head, token, 0, CHUNK, WIDTH)
        c_tile = _tile(c, batch, head, token, column, CHUNK, SLICE)
        if WRITES:
            a_tile = _tile(a, batch, head, token, 0, CHUNK, WIDTH)
            scores = _dot(a_tile, tl.trans(b_tile), None, DTYPE) * within
            if PACKED:
                scores = tl.where(allowed, scores, 0.0)
            output = _dot(a_tile, state, None, DTYPE) * from_state[:, None]
            output = _dot(scores, c_tile, output, DTYPE)
            if HAS_PRE:
                output *= _silu_slope(x.to(tl.float32))
            result = output.to(out.dtype).reshape(1, 1, CHUNK, SLICE)
            out.store([batch, head, token, column], result)
        state = _dot(tl.trans(b_tile), c_tile * to_state[:, None], state * decay, DTYPE)
    return state


@triton.jit
def _load_state(states, place, inside, HAS_STATE: tl.constexpr):
    if HAS_STATE:
        return tl.load(states + place, mask=inside, other=0.0)
    return tl.zeros(place.shape, tl.float32)


@triton.jit
def _range_of_segment(segment, segment_chunks, length, CHUNK: tl.constexpr):
    first = segment * segment_chunks
    return first, tl.minimum(first + segment_chunks, tl.cdiv(length, CHUNK))


@triton.jit
def forward_kernel(
    q, k, v, out, slopes, starts, ends, states, final,
    length, width, heads, pairs, segment_chunks,
    PACKED: tl.constexpr, HAS_STATE: tl.constexpr, DTYPE: tl.constexpr,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Outputs of one (slice, batch x head, segment), and the final state from the last segment."""
    column, pair, segment = tl.program_id(0) * SLICE, tl.program_id(1), tl.program_id(2)
    batch, head = pair // heads, pair % heads
    offset = batch.to(tl.int64) * length
    row = tl.arange(0, WIDTH)
    place, inside = _state_places(row, column + tl.arange(0, SLICE), width, False)
    state_size = (width * width).to(tl.int64)
    before = states + (segment * pairs + pair) * state_size
    first, last = _range_of_segment(segment, segment_chunks, length, CHUNK)
    state = _scan(
        q, k, v, out, starts, (0, 0, 0),
        _load_state(before, place, inside, HAS_STATE), tl.load(slopes + head),
        starts + offset, ends + offset, batch, head, column, first, last, length, width,
        False, True, PACKED, False, DTYPE, CHUNK, WIDTH, SLICE,
    )  # fmt: skip
    if segment == tl.num_programs(2) - 1:
        tl.store(final + pair * state_size + place, state, mask=inside)


@triton.jit
def segment_kernel(
    b, c, slopes, starts, ends, states,
    length, width, heads, pairs, segment_chunks,
    REVERSE: tl.constexpr, PACKED: tl.constexpr, DTYPE: tl.constexpr,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """What each segment alone adds to the state at its end (REVERSE: before its start)."""
    column, pair, segment = tl.program_id(0) * SLICE, tl.program_id(1), tl.program_id(2)
    batch, head = pair // heads, pair % heads
    offset = batch.to(tl.int64) * length
    place, inside = _state_places(tl.arange(0, WIDTH), column + tl.arange(0, SLICE), width, False)
    first, last = _range_of_segment(segment, segment_chunks, length, CHUNK)
    state = _scan(
        b, b, c, b, starts, (0, 0, 0),
        tl.zeros([WIDTH, SLICE], tl.float32), tl.load(slopes + head),
        starts + offset, ends + offset, batch, head, column, first, last, length, width,
        REVERSE, False, PACKED, False, DTYPE, CHUNK, WIDTH, SLICE,
    )  # fmt: skip
    target = states + (segment * pairs + pair) * (width * width).to(tl.int64)
    tl.store(target + place, state, mask=inside)


@triton.jit
def combine_kernel(
    states, start_state, slopes, starts,
    length, state_size, heads, pairs, segments, segment_tokens,
    REVERSE: tl.constexpr, PACKED: tl.constexpr, HAS_START: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace what segments add by the state they start from, in place."""
    place, pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    batch, head = pair // heads, pair % heads
    inside = place < state_size
    slope = tl.load(slopes + head)
    starts += batch.to(tl.int64) * length
    state = tl.zeros([BLOCK], tl.float32)
    if HAS_START:
        here = start_state + pair * state_size.to(tl.int64) + place
        state = tl.load(here, mask=inside, other=0.0)
    for step in range(segments):
        segment = segments - 1 - step if REVERSE else step
        first = segment * segment_tokens
        end = tl.minimum(first + segment_tokens, length)
        decay = tl.exp(-slope * (end - first))
        if PACKED:
            # the document of the state's token reaches through the segment or it does not
            if REVERSE:
                survives = tl.load(starts + tl.minimum(end, length - 1)) <= first
            else:
                survives = tl.load(starts + end - 1) < tl.maximum(first, 1)
            decay = tl.where(survives, decay, 0.0)
        here = states + (segment * pairs + pair) * state_size.to(tl.int64) + place
        added = tl.load(here, mask=inside, other=0.0)
        tl.store(here, state, mask=inside)
        state = state * decay + added


@triton.jit
def backward_kernel(
    q, k, v, d_out, q_slice, k_slice, d_out_slice, d_q, d_k, d_v, pre_q, pre_k, pre_v,
    slopes, starts, ends, states, d_states, d_initial,
    length, width, heads, pairs, segment_chunks, slices, segments, strides,
    PACKED: tl.constexpr, HAS_STATE: tl.constexpr, HAS_D_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr, DTYPE: tl.constexpr,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Dk and dv of all heads first, side by side (they read the same tiles), then dq."""
    program = tl.program_id(0)
    reverse_programs = 2 * slices * pairs * segments
    is_dq = program >= reverse_programs
    index = tl.where(is_dq, program - reverse_programs, program // 2)
    column = (index % slices) * SLICE
    pair, segment = (index // slices) % pairs, index // (slices * pairs)
    batch, head = pair // heads, pair % heads
    slope = tl.load(slopes + head)
    starts += batch.to(tl.int64) * length
    ends += batch.to(tl.int64) * length
    row, columns = tl.arange(0, WIDTH), column + tl.arange(0, SLICE)
    state_size = (width * width).to(tl.int64)
    offset = (segment * pairs + pair) * state_size
    first, last = _range_of_segment(segment, segment_chunks, length, CHUNK)
    if is_dq:
        place, inside = _state_places(row, columns, width, True)
        state = _load_state(states + offset, place, inside, HAS_STATE)
        _scan(
            d_out, v, k_slice, d_q, pre_q, strides, state, slope, starts, ends, batch, head, column,
            first, last, length, width,
            False, True, PACKED, HAS_PRE, DTYPE, CHUNK, WIDTH, SLICE,
        )  # fmt: skip
    elif program % 2 == 0:
        place, inside = _state_places(row, columns, width, True)
        state = _load_state(d_states + offset, place, inside, HAS_D_STATE)
        _scan(
            v, d_out, q_slice, d_k, pre_k, strides, state, slope, starts, ends, batch, head, column,
            first, last, length, width,
            True, True, PACKED, HAS_PRE, DTYPE, CHUNK, WIDTH, SLICE,
        )  # fmt: skip
    else:
        place, inside = _state_places(row, columns, width, False)
        state = _load_state(d_states + offset, place, inside, HAS_D_STATE)
        state = _scan(
            k, q, d_out_slice, d_v, pre_v, strides, state, slope, starts, ends, batch, head, column,
            first, last, length, width,
            True, True, PACKED, HAS_PRE, DTYPE, CHUNK, WIDTH, SLICE,
        )  # fmt: skip
        if segment == 0:
            tl.store(d_initial + pair * state_size + place, state, mask=inside)

"""Triton kernels of the selective scan, parallel over batch, channels and chunks of the sequence.

A lane handles one channel and one chunk, with its states in registers, and walks over the chunk's positions. The
lanes of a program cover P channels, which share B and C, in each of K chunks; P · K lanes fill a warp. States come in
tiles of (lanes, WIDTH): a lane loads its WIDTH states at once. Three launches connect the chunks. Backward uses the
same launches, with the gradient of the state as the state, and walks from right to left.

1. `walk` from a zero state gives the state that a chunk adds, and the sum of Δ over the chunk.
2. `carry` scans over chunks, where e^{A ΣΔ} carries a state across a whole chunk, and gives the state that enters each
   chunk.
3. `walk` from these states gives outputs, and the state before every block of positions.

`gradients` then handles each block of positions independently, WIDTH states at a time. It starts from the state that
enters the block on the left and the gradient that enters the block on the right. Sums over positions, for A, D and the
bias of Δ, are stored for every K blocks, and torch adds them up. So there are no atomics, and two runs give identical
bits.

Positions are (row, column), scanned along columns, then rows. Without `ROWS`, positions count as columns of one row:
each tensor has only one row, or its rows follow each other in memory. All arithmetic is in float32. Tensors over
positions come as `Sequence` or `Grouped`, a pointer with strides. States between launches are (batch, chunks or blocks,
D, N). An argument that is not needed is None.

A network has features of many sizes, and `gradients` takes ten seconds to compile. Triton compiles a kernel again for
an integer argument of 1 and for multiples of 16. So sizes and strides are `encoded` as integers that are usually
neither. `PACKED` restores the information that the encoding hides: channels are adjacent in memory, and so are the
states in each group of WIDTH states of B, C and their gradients. Each such group is aligned to its size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


class Sequence(NamedTuple):
    """Pointer and strides of a tensor (batch, D, rows, columns)."""

    data: Any
    batch: int
    channel: int
    row: int
    column: int


class Grouped(NamedTuple):
    """Pointer and strides of a tensor (batch, G, N, rows, columns)."""

    data: Any
    batch: int
    group: int
    state: int
    row: int
    column: int


class Sizes(NamedTuple):
    """Sizes that the kernels iterate over."""

    channels: int
    groups: int
    length: int
    columns: int
    tiles: int  # tiles of P channels in a group


def encoded(value: int) -> int:
    """Encode a size or stride for the tuples above as a number above 1 and, for an even value, no multiple of 16."""
    return value + 17


@triton.jit
def _decoded(code):
    # widened to 64 bits here, as the compiler needs more registers if it widens derived values later
    return code.to(tl.int64) - 17


@triton.jit
def _decoded_sizes(codes):
    return Sizes(
        _decoded(codes.channels),
        _decoded(codes.groups),
        _decoded(codes.length),
        _decoded(codes.columns),
        _decoded(codes.tiles),
    )


@triton.jit
def _lanes(pid, sizes, P: tl.constexpr, K: tl.constexpr):
    """Return each lane's channel, whether that channel exists, and the lane's index among the program's K chunks."""
    lane = tl.arange(0, P * K)
    per_group = sizes.channels // sizes.groups
    in_group = pid % sizes.tiles * P + lane % P
    return pid // sizes.tiles % sizes.groups * per_group + in_group, in_group < per_group, lane // P


@triton.jit
def _offset(x, sample, position, columns, ROWS: tl.constexpr, ahead):
    # a position fits in 32 bits, where division is cheap; an offset may need 64 bits
    if ROWS:
        row = position // columns
        offset = row.to(tl.int64) * _decoded(x.row) + (position - row * columns).to(tl.int64) * _decoded(x.column)
    else:
        offset = position.to(tl.int64) * _decoded(x.column)
    return sample * _decoded(x.batch) + offset + ahead * _decoded(x.column)


@triton.jit
def _at(x, sample, channel, position, columns, ROWS: tl.constexpr, PACKED: tl.constexpr, ahead=0):
    """Return pointers to values of a `Sequence`, `ahead` positions further in the same row."""
    first = x.data + _offset(x, sample, position, columns, ROWS, ahead)
    return first + (channel if PACKED else channel * _decoded(x.channel))


@triton.jit
def _at_states(x, sample, group, position, states, columns, ROWS: tl.constexpr, PACKED: tl.constexpr, ahead=0, part=0):
    """Return pointers (lanes, states) to values of a `Grouped` as `_at` does, offset by `part` values."""
    first = x.data + part + _offset(x, sample, position, columns, ROWS, ahead) + group * _decoded(x.group)
    if PACKED:
        width: tl.constexpr = states.shape[0]
        size: tl.constexpr = width * x.data.dtype.element_ty.primitive_bitwidth // 8
        pointers = first[:, None] + states[None, :]
        pointers = tl.max_contiguous(tl.multiple_of(pointers, (1, size)), (1, width))
    else:
        pointers = first[:, None] + states.to(tl.int64)[None, :] * _decoded(x.state)
    return pointers


@triton.jit
def _load(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_A(A, channel, live, states, STATES: tl.constexpr):
    """Return A log₂ e, so that e^{ΔA} is a power of two, and 1/A; states that do not exist stay 0."""
    mask = live[:, None] & (states < STATES)[None, :]
    value = _load(A + channel[:, None] * STATES + states[None, :], mask)
    # an A this small acts as zero, and avoids 0/0 in (e^{ΔA} − 1)/A
    value = tl.where(tl.abs(value) < 1e-20, -1e-20, value)
    return value * LOG2_E, tl.where(mask, 1 / value, 0.0)


@triton.jit
def _exp2m1(x):
    """Return 2^x − 1 with a relative error of 1e-6, even near 0."""
    x_e = x * LN_2
    series = x_e * (1 + x_e * (1 / 2 + x_e * (1 / 6 + x_e * (1 / 24 + x_e * (1 / 120)))))
    return tl.where(tl.abs(x) < 0.3, series, tl.exp2(x) - 1)


@triton.jit
def _weight_by_A(x_2, decay):
    """Return (x e^x − e^x + 1)/x² for x = x₂ ln 2; times Δ², it is the derivative of (e^{ΔA} − 1)/A by A."""
    x = x_2 * LN_2
    series = 1 / 30 + x * (1 / 144 + x * (1 / 840 + x * (1 / 5760)))
    series = 1 / 2 + x * (1 / 3 + x * (1 / 8 + x * series))
    small = tl.abs(x) < 0.4
    return tl.where(small, series, ((x - 1) * decay + 1) / tl.where(small, 1.0, x * x))


@triton.jit
def _softplus(x):
    """Return log(1 + e^x), or x if it is above 20, as torch does."""
    e = tl.exp2(x * LOG2_E)
    # log(1 + e) loses the digits of a small e; the equivalent 2 artanh(e / (2 + e)) does not
    s = e / (2 + e)
    square = s * s
    series = 2 * s * (1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7))))
    return tl.where(x > 20, x, tl.where(e < 0.3, series, tl.log(1 + e)))


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(-x * LOG2_E))


@triton.jit
def _raw_delta(
    delta, delta_bias, sample, channel, live, position, columns, ROWS: tl.constexpr, PACKED: tl.constexpr, ahead=0
):
    """Return Δ before softplus."""
    raw = _load(_at(delta, sample, channel, position, columns, ROWS, PACKED, ahead), live)
    if delta_bias is not None:
        raw += _load(delta_bias + channel, live)
    return raw


@triton.jit
def _delta(raw, live, SOFTPLUS: tl.constexpr):
    """Return Δ, or 0 for idle lanes: a step of 0 does not change a state."""
    if SOFTPLUS:
        raw = _softplus(raw)
    return tl.where(live, raw, 0.0)


@triton.jit
def _advance(h, x, delta, u, B, inverse_A, EXACT: tl.constexpr):
    """Advance the state (lanes, states) by one position; x is ΔA log₂ e."""
    if EXACT:
        # e^{ΔA} h + (e^{ΔA} − 1)/A B u
        return h + _exp2m1(x) * (h + B * (u[:, None] * inverse_A))
    return tl.exp2(x) * h + B * (delta * u)[:, None]


@triton.jit(do_not_specialize=["chunks", "chunk"])
def walk(  # noqa: ANN201 (Triton's language)
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    start,
    entering,
    added,
    sums,
    y,
    kept,
    last_state,
    sizes,
    chunks,
    chunk,
    SOFTPLUS: tl.constexpr,
    EXACT: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICES: tl.constexpr,
    TILES: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
):
    """Walk over chunks; BACKWARD walks from right to left, with ∂y as `u`, C as `B`, and a gradient as the state.

    The initial state is `entering`, or `start` (batch, D, N) if `entering` is None, or zero if both are None. The state
    before every block goes to `kept`, and the state after the last position to `last_state` (batch, D, N). `added` gets
    the state after each chunk, and `sums` (batch, chunks, D) the sum of Δ over the chunk. The i-th chunk of the walk
    writes to index i + 1 of `added` and `sums`. Registers hold only a slice of TILES tiles of states; with several
    slices, y is float32 and accumulates their contributions.
    """
    sizes = _decoded_sizes(sizes)
    columns = sizes.columns.to(tl.int32)  # 32 bits, as every position is divided by it
    pid = tl.program_id(0).to(tl.int64)
    channel, live_channel, slot = _lanes(pid, sizes, P, K)
    group = pid // sizes.tiles % sizes.groups
    together = tl.cdiv(chunks, K)
    order = (pid // (sizes.tiles * sizes.groups) % together).to(tl.int32) * K + slot
    sample = pid // (sizes.tiles * sizes.groups) // together
    live = live_channel & (order < chunks)
    first = (chunks - 1 - order if BACKWARD else order) * chunk
    row = ((sample * chunks + order) * sizes.channels + channel)[:, None] * STATES
    sample_row = (sample * sizes.channels + channel)[:, None] * STATES
    for slice in tl.static_range(SLICES):
        h = ()
        values_A = ()
        inverse_A = ()
        for tile in tl.static_range(TILES):
            states = (slice * TILES + tile) * WIDTH + tl.arange(0, WIDTH)
            mask = live[:, None] & (states < STATES)[None, :]
            value_A, inverse = _load_A(A, channel, live, states, STATES)
            values_A = values_A + (value_A,)
            inverse_A = inverse_A + (inverse,)
            if entering is not None:
                h = h + (_load(entering + row + states[None, :], mask),)
            elif start is not None:
                h = h + (_load(start + sample_row + states[None, :], mask),)
            else:
                h = h + (tl.zeros((P * K, WIDTH), tl.float32),)
        total = tl.zeros((P * K,), tl.float32)
        for i in range(0, chunk // BLOCK):
            if kept is not None:
                block = first // BLOCK + (chunk // BLOCK - 1 - i if BACKWARD else i)
                kept_row = (sample * tl.cdiv(sizes.length, BLOCK) + block) * sizes.channels + channel
                live_block = live & (block * BLOCK < sizes.length)
                for tile in tl.static_range(TILES):
                    states = (slice * TILES + tile) * WIDTH + tl.arange(0, WIDTH)
                    mask = live_block[:, None] & (states < STATES)[None, :]
                    tl.store(kept + kept_row[:, None] * STATES + states[None, :], h[tile], mask=mask)
            for j in range(i * BLOCK, i * BLOCK + BLOCK):
                position = first + (chunk - 1 - j if BACKWARD else j)
                there = live & (position < sizes.length)
                raw = _raw_delta(delta, delta_bias, sample, channel, there, position, columns, ROWS, PACKED)
                step_delta = _delta(raw, there, SOFTPLUS)
                step_u = _load(_at(u, sample, channel, position, columns, ROWS, PACKED), there)
                if z is not None:
                    gate = _load(_at(z, sample, channel, position, columns, ROWS, PACKED), there)
                    gate *= _sigmoid(gate)
                    if BACKWARD:
                        step_u *= gate
                total += step_delta
                products = tl.zeros((P * K, WIDTH), tl.float32)
                advanced = ()
                for tile in tl.static_range(TILES):
                    states = (slice * TILES + tile) * WIDTH + tl.arange(0, WIDTH)
                    mask = there[:, None] & (states < STATES)[None, :]
                    step_B = _load(_at_states(B, sample, group, position, states, columns, ROWS, PACKED), mask)
                    x = step_delta[:, None] * values_A[tile]
                    if BACKWARD:
                        after = tl.exp2(x) * (h[tile] + step_B * step_u[:, None])
                    else:
                        after = _advance(h[tile], x, step_delta, step_u, step_B, inverse_A[tile], EXACT)
                    if y is not None:
                        products += after * _load(
                            _at_states(C, sample, group, position, states, columns, ROWS, PACKED), mask
                        )
                    advanced = advanced + (after,)
                h = advanced
                if y is not None:
                    at_y = _at(y, sample, channel, position, columns, ROWS, PACKED)
                    step_y = tl.sum(products, 1)
                    if slice > 0:
                        step_y += _load(at_y, there)
                    if slice == SLICES - 1:
                        if D is not None:
                            step_y += _load(D + channel, live) * step_u
                        if z is not None:
                            step_y *= gate
                    tl.store(at_y, step_y, mask=there)
        goes_on = order < chunks - 1
        for tile in tl.static_range(TILES):
            states = (slice * TILES + tile) * WIDTH + tl.arange(0, WIDTH)
            if added is not None:
                mask = (live & goes_on)[:, None] & (states < STATES)[None, :]
                tl.store(added + row + sizes.channels * STATES + states[None, :], h[tile], mask=mask)
            if last_state is not None:
                mask = (live & ~goes_on)[:, None] & (states < STATES)[None, :]
                tl.store(last_state + sample_row + states[None, :], h[tile], mask=mask)
        if added is not None:
            if slice == 0:
                to_sums = sums + (sample * chunks + order + 1) * sizes.channels + channel
                tl.store(to_sums, total, mask=live & goes_on)


@triton.jit
def _join(decay, state, next_decay, next_state):
    return decay * next_decay, next_decay * state + next_state


@triton.jit(do_not_specialize=["chunks"])
def carry(  # noqa: ANN201
    A, start, added, sums, sizes, chunks, STATES: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr
):
    """Replace the states that chunks add, in place, by those that enter chunks, given `start` (batch, D, N) or zero."""
    sizes = _decoded_sizes(sizes)
    pid = tl.program_id(0).to(tl.int64)
    values = STATES * sizes.channels
    column = pid % tl.cdiv(values, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    sample = pid // tl.cdiv(values, COLUMNS)
    there = column < values
    value_A = _load(A + column, there)
    channel = column // STATES
    if start is None:
        h = tl.zeros((COLUMNS,), tl.float32)
    else:
        h = _load(start + sample * values + column, there)
    for first in range(0, chunks, TILE):
        chunk = first + tl.arange(0, TILE)
        row = sample * chunks + chunk
        # the first chunk receives nothing
        handed = ((chunk > 0) & (chunk < chunks))[:, None] & there[None, :]
        total = _load(sums + row[:, None] * sizes.channels + channel[None, :], handed)
        decay = tl.exp2(total * value_A[None, :] * LOG2_E)
        pointers = added + row[:, None] * values + column[None, :]
        decay, state_of_tile = tl.associative_scan((decay, _load(pointers, handed)), 0, _join)
        entering = state_of_tile + decay * h[None, :]
        tl.store(pointers, entering, mask=(chunk < chunks)[:, None] & there[None, :])
        h = tl.sum(tl.where((chunk == first + TILE - 1)[:, None], entering, 0.0), 0)


@triton.jit
def _sum_channels(x, P: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr):
    """Sum x (lanes, WIDTH) over the channels in this program; every lane gets the sum for its block."""
    total = tl.sum(tl.reshape(x, (K, P, WIDTH)), 1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, (K, P, WIDTH)), (P * K, WIDTH))


@triton.jit
def _sum_blocks(x, P: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr):
    """Sum x (lanes, WIDTH) over the blocks in this program; every lane gets the sum for its channel."""
    total = tl.sum(tl.reshape(x, (K, P, WIDTH)), 0, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, (K, P, WIDTH)), (P * K, WIDTH))


@triton.jit(do_not_specialize=["parts", "part_size", "tiles_of_part"])
def gradients(  # noqa: ANN201
    grad_y,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    starts,
    ends,
    grad_u,
    grad_delta,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_z,
    grad_delta_bias,
    sizes,
    parts,
    part_size,
    tiles_of_part,
    SOFTPLUS: tl.constexpr,
    EXACT: tl.constexpr,
    INSIDE: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
    SEVERAL_TILES: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
):
    """Compute the gradients of K blocks, from the states that enter on the left, `starts`, and on the right, `ends`.

    `ends` holds gradients of states. The gradients of A (batch, blocks / K, D, N) and of D and the bias of Δ
    (batch, blocks / K, D) are sums over the K blocks. The gradients of B and C (parts, batch, G, N, ...), with
    `part_size` values per part, are sums over the channels of a part; a group's tiles of channels are divided into
    parts. INSIDE means that no block continues in another row, which saves divisions.
    """
    sizes = _decoded_sizes(sizes)
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(sizes.length, BLOCK)
    together = tl.cdiv(blocks, K)
    part = pid % parts
    group = pid // parts % sizes.groups
    order = (pid // (parts * sizes.groups) % together).to(tl.int32)
    sample = pid // (parts * sizes.groups) // together
    first_tile = part * (tiles_of_part if SEVERAL_TILES else 1)
    for tile in range(first_tile, tl.minimum(first_tile + (tiles_of_part if SEVERAL_TILES else 1), sizes.tiles)):
        channel, live, slot = _lanes(group * sizes.tiles + tile, sizes, P, K)
        first_of_group = tl.arange(0, P * K) % P == 0
        block = order * K + slot
        first = block * BLOCK
        deltas = ()
        inputs = ()
        grads = ()
        sum_u = ()
        sum_delta = ()
        sum_y = ()
        for t in tl.static_range(BLOCK):
            position = first if INSIDE else first + t
            ahead = t if INSIDE else 0
            there = live & (first + t < sizes.length)
            raw = _raw_delta(delta, delta_bias, sample, channel, there, position, sizes.columns, True, PACKED, ahead)
            deltas = deltas + (_delta(raw, there, SOFTPLUS),)
            inputs = inputs + (_load(_at(u, sample, channel, position, sizes.columns, True, PACKED, ahead), there),)
            grad = _load(_at(grad_y, sample, channel, position, sizes.columns, True, PACKED, ahead), there)
            if z is not None:
                gate = _load(_at(z, sample, channel, position, sizes.columns, True, PACKED, ahead), there)
                grad *= gate * _sigmoid(gate)
            grads = grads + (grad,)
            sum_u = sum_u + (tl.zeros((P * K,), tl.float32),)
            sum_delta = sum_delta + (tl.zeros((P * K,), tl.float32),)
            sum_y = sum_y + (tl.zeros((P * K,), tl.float32),)
        kept_row = ((sample * blocks + block) * sizes.channels + channel)[:, None] * STATES
        sum_row = ((sample * together + order) * sizes.channels + channel)[:, None] * STATES
        for first_state in range(0, STATES, WIDTH):
            states = first_state + tl.arange(0, WIDTH)
            live_states = (states < STATES)[None, :]
            value_A, inverse_A = _load_A(A, channel, live, states, STATES)
            mask = (live & (first < sizes.length))[:, None] & live_states
            h = _load(starts + kept_row + states[None, :], mask)
            r = _load(ends + kept_row + states[None, :], mask)
            before = ()
            grown = ()
            values_B = ()
            for t in tl.static_range(BLOCK):
                position = first if INSIDE else first + t
                ahead = t if INSIDE else 0
                mask = (live & (first + t < sizes.length))[:, None] & live_states
                x = deltas[t][:, None] * value_A
                at_B = _at_states(B, sample, group, position, states, sizes.columns, True, PACKED, ahead)
                values_B = values_B + (_load(at_B, mask),)
                before = before + (h,)
                grown = grown + (_exp2m1(x) if EXACT else tl.exp2(x) - 1,)
                h = _advance(h, x, deltas[t], inputs[t], values_B[t], inverse_A, EXACT)
            after = h
            sum_A = tl.zeros((P * K, WIDTH), tl.float32)
            with_u = ()
            with_delta = ()
            with_y = ()
            for t in tl.static_range(BLOCK - 1, -1, -1):
                position = first if INSIDE else first + t
                ahead = t if INSIDE else 0
                there = live & (first + t < sizes.length)
                mask = there[:, None] & live_states
                writes = (there & first_of_group)[:, None] & live_states
                step_C = _load(_at_states(C, sample, group, position, states, sizes.columns, True, PACKED, ahead), mask)
                step_delta = deltas[t][:, None]
                step_u = inputs[t][:, None]
                step_grad = grads[t][:, None]
                if z is not None:
                    with_y = (sum_y[t] + tl.sum(after * step_C, 1),) + with_y
                else:
                    with_y = (sum_y[t],) + with_y
                from_grad = step_grad * after
                after = before[t]
                g = r + step_grad * step_C
                decay = grown[t] + 1
                # through the decay: d e^{ΔA} is e^{ΔA} (A dΔ + Δ dA)
                r = g * decay
                through_decay = r * after
                sum_A += step_delta * through_decay
                # through the weight: ∂w/∂Δ is e^{ΔA} for the zero-order hold and 1 otherwise
                g_B = g * values_B[t]
                grad_weight = g_B * step_u
                if EXACT:
                    weight = grown[t] * inverse_A
                    sum_A += step_delta * step_delta * _weight_by_A(step_delta * value_A, decay) * grad_weight
                    grad_weight *= decay
                else:
                    weight = step_delta
                with_u = (sum_u[t] + tl.sum(weight * g_B, 1),) + with_u
                by_delta = through_decay * (value_A * LN_2) + grad_weight
                with_delta = (sum_delta[t] + tl.sum(by_delta, 1),) + with_delta

                to_B = _at_states(
                    grad_B, sample, group, position, states, sizes.columns, True, PACKED, ahead, part * part_size
                )
                to_C = _at_states(
                    grad_C, sample, group, position, states, sizes.columns, True, PACKED, ahead, part * part_size
                )
                all_B = _sum_channels(g * weight * step_u, P, K, WIDTH)
                all_C = _sum_channels(from_grad, P, K, WIDTH)
                if SEVERAL_TILES:
                    earlier = tl.where(tile > first_tile, writes, False)
                    all_B += _load(to_B, earlier)
                    all_C += _load(to_C, earlier)
                tl.store(to_B, all_B, mask=writes)
                tl.store(to_C, all_C, mask=writes)
            sum_u = with_u
            sum_delta = with_delta
            sum_y = with_y
            mask = (live & (slot == 0))[:, None] & live_states
            tl.store(grad_A + sum_row + states[None, :], _sum_blocks(sum_A, P, K, WIDTH), mask=mask)

        sum_D = tl.zeros((P * K,), tl.float32)
        sum_bias = tl.zeros((P * K,), tl.float32)
        for t in tl.static_range(BLOCK):
            position = first if INSIDE else first + t
            ahead = t if INSIDE else 0
            there = live & (first + t < sizes.length)
            step_grad_u = sum_u[t]
            ungated = sum_y[t]
            if D is not None:
                value_D = _load(D + channel, live)
                step_grad_u += value_D * grads[t]
                ungated += value_D * inputs[t]
                sum_D += grads[t] * inputs[t]
            tl.store(
                _at(grad_u, sample, channel, position, sizes.columns, True, PACKED, ahead), step_grad_u, mask=there
            )
            step_grad_delta = sum_delta[t]
            if SOFTPLUS:
                raw = _raw_delta(
                    delta, delta_bias, sample, channel, there, position, sizes.columns, True, PACKED, ahead
                )
                step_grad_delta *= tl.where(raw > 20, 1.0, _sigmoid(raw))
            step_grad_delta = tl.where(there, step_grad_delta, 0.0)
            sum_bias += step_grad_delta
            tl.store(
                _at(grad_delta, sample, channel, position, sizes.columns, True, PACKED, ahead),
                step_grad_delta,
                mask=there,
            )
            if z is not None:
                gate = _load(_at(z, sample, channel, position, sizes.columns, True, PACKED, ahead), there)
                sigmoid = _sigmoid(gate)
                by_gate = ungated * sigmoid * (1 + gate * (1 - sigmoid))
                by_gate *= _load(_at(grad_y, sample, channel, position, sizes.columns, True, PACKED, ahead), there)
                tl.store(
                    _at(grad_z, sample, channel, position, sizes.columns, True, PACKED, ahead), by_gate, mask=there
                )
        row = (sample * together + order) * sizes.channels + channel
        all_D, all_bias = tl.split(_sum_blocks(tl.join(sum_D, sum_bias), P, K, 2))
        if D is not None:
            tl.store(grad_D + row, all_D, mask=live & (slot == 0))
        if delta_bias is not None:
            tl.store(grad_delta_bias + row, all_bias, mask=live & (slot == 0))

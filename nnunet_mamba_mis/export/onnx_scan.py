"""Build the selective scan from ONNX matrix products and elementwise operations, without loops, branches or sequences.

The L positions form K chunks of T positions. All chunks advance together, in T unrolled steps on (batch, D, N, K)
states:

1. Run every chunk from a zero state, which gives its outputs and the state that it adds.
2. From the added states, compute the state that enters each chunk, by a scan over K positions. This scan is chunked in
   the same way, or uses doubling if K is small or has no divisor from 2 to 16 (Hillis and Steele 1986). Multiplication
   by e^{A ΣΔ} carries a state across any number of positions.
3. Let the entering state decay through the chunk, and add that state's share to the outputs.

No exponent is positive, so a large Δ makes a state vanish but never overflow. Positions are processed in blocks that
fit in the cache, so the states of all positions are never in memory at once.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

from onnxscript import opset18

Value = Any  # onnx_ir.Value
op: Any = opset18  # its annotations allow neither lists nor plain numbers

_LONGEST_CHUNK = 16
# with more chunks, doubling costs more than a chunked scan
_LONGEST_DOUBLING = 64
# values in a block of states
_BLOCK_VALUES = 2**20


def scan_steps(length: int) -> int:
    """Return T, the largest divisor of L that exceeds neither 16 nor the square root of L."""
    longest = min(_LONGEST_CHUNK, math.isqrt(length))
    return max(steps for steps in range(1, longest + 1) if length % steps == 0)


def cut(x: Value, channels: int, length: int) -> Value:
    """Cut (batch, C, ...) with L positions into chunks (T, batch, C, K)."""
    return op.Transpose(op.Reshape(x, [0, channels, -1, scan_steps(length)]), perm=[3, 0, 1, 2])


def join(x: Value, channels: int, *sizes: int) -> Value:
    """Join chunks (T, batch, C, K) to (batch, C, *sizes), the inverse of `cut`."""
    return op.Reshape(op.Transpose(x, perm=[1, 2, 3, 0]), [0, channels, *sizes])


def scan(
    u: Value, delta: Value, A: Value, B: Value, C: Value, exact: bool, channels: int, states: int, length: int
) -> Value:
    """Return outputs (T, batch, D, K) without the skip term.

    Args:
        u: (T, batch, D, K), from `cut`.
        delta: (T, batch, D, K), positive.
        A: (D, N), negative.
        B: (T, batch, N, K).
        C: (T, batch, N, K).
        exact: Whether the weight of B_t u_t is (e^{ΔA} − 1)/A, as in the zero-order hold; otherwise it is Δ.
        channels: D.
        states: N.
        length: L.
    """
    steps = scan_steps(length)
    chunks = length // steps
    A = op.Min(A, -1e-20)  # avoids the special case A = 0 of (e^{ΔA} − 1)/A
    # the zero-order hold keeps A times the state, which avoids a division at every position
    read = op.Reshape(op.Reciprocal(A), [channels, 1, states]) if exact else op.Expand(1.0, [channels, 1, states])
    A = op.Unsqueeze(A, [2])  # (D, N, 1)
    u, delta = op.Unsqueeze(u, [3]), op.Unsqueeze(delta, [3])
    B, C = op.Unsqueeze(B, [2]), op.Unsqueeze(C, [2])
    # all blocks have the same number of steps
    size = max(1, _BLOCK_VALUES // (channels * states * chunks))
    size = max(s for s in range(1, min(size, steps) + 1) if steps % s == 0)
    u, delta, B, C = (_split(x, steps // size) for x in (u, delta, B, C))

    advance = _advance_exactly if exact else _advance
    state, outputs = None, []
    for u_block, delta_block, B_block, C_block in zip(u, delta, B, C, strict=True):
        passed = advance(state, u_block, delta_block, A, B_block, size)
        state = passed[-1]
        outputs.append(_read(_concat(passed), C_block, read))
    if chunks > 1:
        elapsed = list(itertools.accumulate((step for block in delta for step in _split(block, size)), op.Add))
        entering = _entering(state, elapsed[-1], A, channels, states, chunks)
        for index, C_block in enumerate(C):
            decay = op.Exp(op.Mul(_concat(elapsed[index * size : (index + 1) * size]), A))
            outputs[index] = op.Add(outputs[index], _read(op.Mul(decay, entering), C_block, read))
    return op.Squeeze(_concat(outputs), [3])


def _advance_exactly(state: Value, u: Value, delta: Value, A: Value, B: Value, size: int) -> list[Value]:
    """Return g, A times the state after each position of a block: g ← g + (e^{ΔA} − 1)(g + B u)."""
    growth, added = _split(_expm1(op.Mul(delta, A)), size), _split(op.Mul(u, B), size)
    passed = []
    for gain, x in zip(growth, added, strict=True):
        state = op.Mul(gain, x) if state is None else op.Add(state, op.Mul(gain, op.Add(state, x)))
        passed.append(state)
    return passed


def _advance(state: Value, u: Value, delta: Value, A: Value, B: Value, size: int) -> list[Value]:
    """Return the state after each position of a block."""
    return _follow(state, _split(op.Exp(op.Mul(delta, A)), size), _split(op.Mul(op.Mul(delta, u), B), size))


def _follow(state: Value, decays: list[Value], added: list[Value]) -> list[Value]:
    """Return the states h_t = decay_t h_{t−1} + added_t."""
    passed = []
    for decay, x in zip(decays, added, strict=True):
        state = x if state is None else op.Add(op.Mul(decay, state), x)
        passed.append(state)
    return passed


def _expm1(x: Value) -> Value:
    """Return e^x − 1 with a relative error of at most 5e-6 and no cancellation at 0; ONNX has no such operator.

    Both approximations lie below the true value: the series by x⁴/24, and the difference by about 2e-7, as it
    subtracts 1 and two float32 rounding units from e^x. The larger approximation is therefore the closer one.
    """
    series = op.Mul(x, op.Add(op.Mul(x, op.Add(op.Mul(x, 1 / 6), 0.5)), 1.0))
    return op.Max(op.Sub(op.Exp(x), 1 + 2.4e-7), series)


def softplus(x: Value) -> Value:
    """Return log(1 + e^x) with a relative error of at most 3e-7 even for tiny values, where runtimes lose digits.

    The formula is max(x, 0) + log(1 + z) with z = e^{−|x|}, and log(1 + z) = 2 artanh(s) with s = z/(2 + z) ≤ 1/3.
    """
    z = op.Exp(op.Neg(op.Abs(x)))
    s = op.Div(z, op.Add(z, 2.0))
    square = op.Mul(s, s)
    series = op.Add(op.Mul(square, 1 / 13), 1 / 11)
    for divisor in (9, 7, 5, 3, 1):
        series = op.Add(op.Mul(square, series), 1 / divisor)
    return op.Add(op.Relu(x), op.Mul(op.Add(s, s), series))


def _read(states: Value, C: Value, weight: Value) -> Value:
    """Reduce states (…, D, N, K) to outputs (…, D, 1, K)."""
    return op.MatMul(weight, op.Mul(states, C))


def _entering(added: Value, elapsed: Value, A: Value, channels: int, states: int, chunks: int) -> Value:
    """Return the states that enter chunks, from added states (1, batch, D, N, K) and ΣΔ (1, batch, D, 1, K)."""
    steps = scan_steps(chunks)
    # `steps` is 1 if the number of chunks has no divisor from 2 to the longest chunk, such as 289 = 17 × 17
    if chunks <= _LONGEST_DOUBLING or steps == 1:
        return _later(_doubled(added, elapsed, A, chunks), 1)
    parts, spans = (
        _split(op.Transpose(op.Reshape(op.Squeeze(x, [0]), [0, channels, n, -1, steps]), perm=[4, 0, 1, 2, 3]), steps)
        for x, n in ((added, states), (elapsed, 1))
    )
    decays = [op.Exp(op.Mul(span, A)) for span in spans]
    last = _follow(None, decays, parts)[-1]
    state = _entering(last, functools.reduce(op.Add, spans), A, channels, states, chunks // steps)
    entering = _concat([state, *_follow(state, decays[:-1], parts[:-1])])
    return op.Reshape(op.Transpose(entering, perm=[1, 2, 3, 4, 0]), [1, -1, channels, states, chunks])


def _doubled(added: Value, elapsed: Value, A: Value, chunks: int) -> Value:
    """Return the state after each chunk."""
    shift = 1
    while shift < chunks:
        # each sum now spans twice as many chunks, and still ends at the same chunk
        added = op.Add(added, op.Mul(op.Exp(op.Mul(elapsed, A)), _later(added, shift)))
        elapsed = op.Add(elapsed, _later(elapsed, shift))
        shift *= 2
    return added


def _later(x: Value, shift: int) -> Value:
    """Shift chunks to later positions, with zeros before the first."""
    return op.Pad(x, [0, 0, 0, 0, shift, 0, 0, 0, 0, -shift])


def _split(x: Value, count: int) -> list[Value]:
    return list(op.Split(x, axis=0, num_outputs=count)) if count > 1 else [x]


def _concat(values: list[Value]) -> Value:
    return op.Concat(*values, axis=0) if len(values) > 1 else values[0]

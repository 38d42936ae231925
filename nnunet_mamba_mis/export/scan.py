"""The selective scan in PyTorch's core operations, for exported programs.

The L positions form K chunks of T positions. All chunks advance together, in a loop of T steps on (batch × K, D, N)
states. A loop over positions would take L steps, and an array of all states would take L times the memory of one state.

1. Run every chunk from a zero state, which gives its outputs and the state that it adds.
2. Loop over chunks to compute the state that enters each, as e^{A ΣΔ} carries a state across a whole chunk.
3. Let the entering state decay through the chunk, and add that state's share to the outputs.

The loops are `torch.ops.higher_order.scan`, which Inductor compiles to loops (ONNX uses `onnx_scan` instead). The T
steps run along the first axis. Exported programs need no backward, so this module has none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.chunked import nonzero

# up to this length, one loop costs less than three
_ONE_CHUNK = 16


def scan_steps(length: int) -> int:
    """Return T, the largest divisor of L up to the square root of L, or L itself for at most 16 positions."""
    if length <= _ONE_CHUNK:
        return length
    return max(steps for steps in range(1, math.isqrt(length) + 1) if length % steps == 0)


def cut(x: Tensor, steps: int) -> Tensor:
    """Cut (batch, L, C) into chunks (T, K, batch, C)."""
    return x.unflatten(1, (-1, steps)).permute(2, 1, 0, 3)


def join(x: Tensor) -> Tensor:
    """Join chunks (T, K, batch, C) to (batch, L, C), the inverse of `cut`."""
    return x.permute(2, 1, 0, 3).flatten(1, 2)


def scan_chunks(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """Return outputs (T, K, batch, D) without the skip term, and the state after the last position (batch, D, N).

    Args:
        u: (T, K, batch, D), from `cut`.
        delta: (T, K, batch, D), positive.
        A: (D, N).
        B: (T, K, batch, N).
        C: (T, K, batch, N).
        exact: Whether the weight of B_t u_t is (e^{ΔA} − 1)/A, as in the zero-order hold; otherwise it is Δ.
    """
    steps, chunks, batch, channels = u.shape
    A = nonzero(A)
    u, delta, B, C = (x.contiguous() for x in (u, delta, B, C))
    zero = u.new_zeros(chunks, batch, channels, A.shape[1])
    constants = (A, A / 2, 1 / A) if exact else (A,)
    advance = _advance_exactly if exact else _advance
    if steps == chunks == 1:
        last, y = advance(zero, u[0], delta[0], B[0], C[0], *constants)
        return y.unsqueeze(0), last[0]
    added, y = torch.ops.higher_order.scan(advance, (zero,), (u, delta, B, C), constants)
    if chunks == 1:
        return y, added[0]
    start = u.new_zeros(batch, channels, A.shape[1])
    last, entering = torch.ops.higher_order.scan(_carry, (start,), (added, delta.sum(0)), (A,))
    _, late = torch.ops.higher_order.scan(_fade, (entering,), (delta, C), (A,))
    return y + late, last


def _advance_exactly(h, u, delta, B, C, A, half_A, inverse_A):
    delta = delta.unsqueeze(-1)
    decay = torch.exp(delta * A)
    # e^x − 1 = tanh(x/2)(e^x + 1) has no cancellation; torch.expm1 is not vectorized on CPUs
    weight = torch.tanh(delta * half_A) * (decay + 1) * inverse_A
    h = decay * h + weight * (u.unsqueeze(-1) * B.unsqueeze(-2))
    return h, _output(h, C)


def _advance(h, u, delta, B, C, A):
    h = torch.exp(delta.unsqueeze(-1) * A) * h + (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    return h, _output(h, C)


def _carry(h, added, delta, A):
    return torch.exp(delta.unsqueeze(-1) * A) * h + added, h.clone()


def _fade(h, delta, C, A):
    h = torch.exp(delta.unsqueeze(-1) * A) * h
    return h, _output(h, C)


def _output(h: Tensor, C: Tensor) -> Tensor:
    return torch.matmul(h, C.unsqueeze(-1)).squeeze(-1)

"""The selective scan in out-of-place PyTorch operations, which support every transform.

This scan is slower than the other backends, and autograd keeps all states. The scan runs only under transforms, or for
forward-mode or higher derivatives. Chunks of positions advance together, as in `chunked`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.reference import zero_order_hold


def differentiable_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, exact: bool
) -> tuple[Tensor, Tensor]:
    """Return outputs (batch, D, L) and last state (batch, D, N).

    Args:
        u: (batch, D, L).
        delta: (batch, D, L), after bias and softplus.
        A: (D, N).
        B: (batch, G, N, L).
        C: (batch, G, N, L).
        exact: Whether the weight of B_t u_t is (e^{ΔA} − 1)/A, as in the zero-order hold; otherwise it is Δ.
    """
    channels, length = u.shape[1:]
    steps = math.isqrt(length - 1) + 1
    by_group = (B.shape[1], channels // B.shape[1])
    # a state is (batch, G, P, N, K) for P channels in a group and K chunks
    A = A.unflatten(0, by_group).unsqueeze(-1)
    u, delta = (_cut(t.unflatten(1, by_group).unsqueeze(3), steps) for t in (u, delta))
    B, C = (_cut(t.unsqueeze(2), steps) for t in (B, C))

    inside = []
    state = torch.zeros_like(u[0] * A)
    for x, step, b, c in zip(u, delta, B, C, strict=True):
        weight = step * zero_order_hold(step * A) if exact else step
        state = (step * A).exp() * state + weight * b * x
        inside.append((state * c).sum(3))

    since_start = delta.cumsum(0)
    starts = [torch.zeros_like(state[..., 0])]
    whole = (since_start[-1] * A).exp()
    for added, decay in zip(state.unbind(-1), whole.unbind(-1), strict=True):
        starts.append(decay * starts[-1] + added)
    *entering, last = starts
    entering_states = torch.stack(entering, dim=-1)

    y = [
        own + ((step * A).exp() * entering_states * c).sum(3)
        for own, step, c in zip(inside, since_start, C, strict=True)
    ]
    joined = torch.stack(y, dim=-1).flatten(-2)[..., :length]
    return joined.flatten(1, 2), last.flatten(1, 2)


def _cut(x: Tensor, steps: int) -> Tensor:
    """Cut (..., L) into (steps, ..., chunks); positions past L are zeros, which do not change the state."""
    chunks = -(-x.shape[-1] // steps)
    return F.pad(x, (0, steps * chunks - x.shape[-1])).unflatten(-1, (chunks, steps)).movedim(-1, 0)

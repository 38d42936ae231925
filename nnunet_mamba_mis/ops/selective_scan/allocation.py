"""Allocate the tensors that a scan returns; fake inputs give fake tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def empty_outputs(u: Tensor, A: Tensor, block: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs shaped as u, the last state (batch, D, N) and block-start states (batch · blocks · D · N,).

    Args:
        u: (batch, D, H, W).
        A: (D, N).
        block: Positions per block; None to keep no block-start states.
    """
    batch, channels, height, width = u.shape
    blocks = -(-height * width // block) if block else 0
    dtype = torch.promote_types(u.dtype, torch.float32)
    last_state = u.new_empty(batch, channels, A.shape[1], dtype=dtype)
    return torch.empty_like(u), last_state, u.new_empty(last_state.numel() * blocks, dtype=dtype)


def empty_gradients(inputs: Iterable[Tensor | None], like: Tensor) -> list[Tensor]:
    """Return a tensor for the gradient of each input; an input of None gets one of size 0 on the device of `like`."""
    return [
        like.new_empty(0) if t is None else empty_in_order(t) if t.dim() > 2 else t.new_empty(t.shape) for t in inputs
    ]


def empty_in_order(t: Tensor) -> Tensor:
    """Return a dense tensor with the memory order of t's axes; `empty_like` keeps the order only for a dense t."""
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    return t.new_empty([t.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(t.dim())])

"""Tensors for what a scan returns; meta tensors for fake ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def empty_outputs(u: Tensor, A: Tensor, block: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs as u, last state (batch, D, N), and states before every block-th position, batch · blocks · D · N.

    Args:
        u: (batch, D, H, W).
        A: (D, N).
        block: Positions between two states that are kept; None for keeping none.
    """
    batch, channels, height, width = u.shape
    blocks = -(-height * width // block) if block else 0
    dtype = torch.promote_types(u.dtype, torch.float32)
    last_state = u.new_empty(batch, channels, A.shape[1], dtype=dtype)
    return torch.empty_like(u), last_state, u.new_empty(last_state.numel() * blocks, dtype=dtype)


def empty_gradients(inputs: Iterable[Tensor | None], like: Tensor) -> list[Tensor]:
    """A tensor for the gradient of each input, empty and on the device of `like` for one that is None."""
    return [
        like.new_empty(0) if t is None else empty_in_order(t) if t.dim() > 2 else t.new_empty(t.shape) for t in inputs
    ]


def empty_in_order(t: Tensor) -> Tensor:
    """A dense tensor, axes in memory in the order of those of t: `empty_like` does this for a dense t alone."""
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    return t.new_empty([t.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(t.dim())])

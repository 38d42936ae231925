"""Decompose the package's operators into PyTorch's core operations, so that exported programs stand alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import nnunet_mamba_mis.ops  # noqa: F401 (registers the operators)
from nnunet_mamba_mis.export.scan import cut, join, scan_chunks, scan_steps
from nnunet_mamba_mis.ops.native_pixelwise import pixelwise_in_torch


def decompose_s6(
    u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, exact: bool, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose `native_s6`; the block-start states for backward stay empty."""
    channels, states = A.shape
    x = u.flatten(2).transpose(1, 2)
    # cut x before projecting it, as its projections are many times larger
    x = cut(x, scan_steps(x.shape[1]))
    delta, B, C = F.linear(x, weight).split([channels, states, states], dim=-1)
    y, last_state = scan_chunks(x, F.softplus(delta + delta_bias), A, B, C, exact)
    y = join(y + D * x).transpose(1, 2).unflatten(2, u.shape[2:])
    return y, last_state, u.new_empty(0)


def decompose_chunked_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose `chunked_scan`, the scan without native code, if B and C have only one group."""
    if B.shape[1] != 1:
        return NotImplemented
    steps = scan_steps(u.shape[2])
    x, delta, B, C = (cut(t.transpose(1, 2), steps) for t in (u, delta, B.squeeze(1), C.squeeze(1)))
    y, last_state = scan_chunks(x, delta, A, B, C, exact)
    return join(y).transpose(1, 2), last_state, u.new_empty(0)


# only these lines refer to the package's operators by name
_OWN = torch.ops.nnunet_mamba_mis
Table = dict[Any, Callable[..., Any]]
OWN_OPERATORS: Table = {
    _OWN.native_s6.default: decompose_s6,
    _OWN.chunked_scan.default: decompose_chunked_scan,
    _OWN.native_pixelwise.default: pixelwise_in_torch,
}

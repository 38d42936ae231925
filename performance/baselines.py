"""Baselines of the scan benchmark: the scans that other projects use without CUDA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _discretize(delta: Tensor, A: Tensor, B: Tensor, u: Tensor, discretization: str) -> tuple[Tensor, Tensor]:
    """Return e^{ΔA} and the weighted input, (batch, L, channels, N) each, for the whole sequence."""
    x = delta.mT.unsqueeze(-1) * A
    weight = torch.expm1(x) / A if discretization == "zoh" else delta.mT.unsqueeze(-1)
    return torch.exp(x), weight * B.mT.unsqueeze(2) * u.mT.unsqueeze(-1)


def sequential_loop(u, delta, A, B, C, D, *, delta_softplus: bool, discretization: str) -> Tensor:
    """Loop over positions like mamba_ssm's `selective_scan_ref`: discretize first, then one einsum per position.

    The function unbinds positions instead of indexing them, as backward of each index allocates a gradient as large as
    the sequence.
    """
    assert delta_softplus
    decay, added = _discretize(F.softplus(delta), A, B, u, discretization)
    h = decay.new_zeros(decay.shape[0], *decay.shape[2:])
    outputs = []
    for decay_t, added_t, c in zip(decay.unbind(1), added.unbind(1), C.unbind(2), strict=True):
        h = decay_t * h + added_t
        outputs.append(torch.einsum("bdn,bn->bd", h, c))
    return torch.stack(outputs, dim=2) + D[:, None] * u


def mambapy_scan(u, delta, A, B, C, D, *, delta_softplus: bool, discretization: str) -> Tensor:
    """Run the parallel (Blelloch) scan of mambapy in the way that its Mamba block does."""
    from mambapy.pscan import pscan

    assert delta_softplus
    decay, added = _discretize(F.softplus(delta), A, B, u, discretization)
    h = pscan(decay, added)
    return (h @ C.mT.unsqueeze(-1)).squeeze(-1).mT + D[:, None] * u

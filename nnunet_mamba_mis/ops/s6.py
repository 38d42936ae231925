"""The S6 layer as one operation: projections of Δ, B and C, softplus and scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan import registry
from nnunet_mamba_mis.ops.selective_scan.api import selective_scan
from nnunet_mamba_mis.ops.selective_scan.inputs import check_discretization, check_tensor


def s6(
    x: Tensor,
    delta_weight: Tensor,
    delta_bias: Tensor,
    bc_weight: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    discretization: str = "zoh",
) -> Tensor:
    """Selective scan of x along its positions, with Δ = softplus(W_Δ x + b_Δ) and [B, C] = W_BC x.

    The native backend projects tile by tile: Δ, B and C, which are many times as large as x, are neither written to
    memory nor kept for backward. Other backends get them from two linear layers.

    Args:
        x: (batch, H, W, channels), scanned along W, then H; any strides.
        delta_weight: (channels, channels).
        delta_bias: (channels,).
        bc_weight: (2N, channels), rows for B first.
        A: (channels, N).
        D: (channels,).
        discretization: "zoh" or "mamba", as `selective_scan` has it.

    Returns:
        (batch, H, W, channels) in x's dtype; scanned in float32 (float64 for float64 x), even under autocast.

    Raises:
        ValueError: A shape, type, device or the discretization is wrong.
    """
    _check_arguments(x, delta_weight, delta_bias, bc_weight, A, D, discretization)
    u = _channels_second(x)
    backend = registry.fastest_backend(u, discretization)
    if backend.projects:
        weight = torch.cat([delta_weight, bc_weight])
        projected = backend.scan_projected(u, weight, A, D, delta_bias, discretization)
        return projected.to(x.dtype).permute(0, 2, 3, 1)
    # the scan adds the bias, in float32, before its softplus
    delta = F.linear(x, delta_weight)
    B, C = F.linear(x, bc_weight).chunk(2, dim=-1)
    y = selective_scan(
        u,
        _channels_second(delta),
        A,
        _channels_second(B),
        _channels_second(C),
        D,
        delta_bias=delta_bias,
        delta_softplus=True,
        discretization=discretization,
    )
    return y.permute(0, 2, 3, 1)  # type: ignore[union-attr]


def _check_arguments(
    x: Tensor, delta_weight: Tensor, delta_bias: Tensor, bc_weight: Tensor, A: Tensor, D: Tensor, discretization: str
) -> None:
    check_discretization(discretization)
    if x.dim() != 4 or A.dim() != 2 or x.numel() == 0 or A.numel() == 0:
        raise ValueError(
            f"x must be (batch, H, W, channels) and A (channels, N), not empty: {tuple(x.shape)}, {tuple(A.shape)}"
        )
    channels, states = x.shape[-1], A.shape[1]
    check_tensor("x", x, x.shape, x.device)
    check_tensor("delta_weight", delta_weight, (channels, channels), x.device)
    check_tensor("delta_bias", delta_bias, (channels,), x.device)
    check_tensor("bc_weight", bc_weight, (2 * states, channels), x.device)
    check_tensor("A", A, (channels, states), x.device)
    check_tensor("D", D, (channels,), x.device)


def _channels_second(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)

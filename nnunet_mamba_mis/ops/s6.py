"""The S6 layer as one operation: projections of Δ, B and C, softplus and scan."""

from __future__ import annotations

from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan import registry
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
    """Scan x selectively along its positions, with Δ = softplus(W_Δ x + b_Δ) and [B, C] = W_BC x.

    Δ, B and C have many times the size of x. The native backend computes them tile by tile, and neither writes them to
    memory nor keeps them for backward. For other backends, two linear layers compute them.

    Args:
        x: (batch, H, W, channels), scanned along W, then H; any strides.
        delta_weight: (channels, channels).
        delta_bias: (channels,).
        bc_weight: (2N, channels), rows for B first.
        A: (channels, N).
        D: (channels,).
        discretization: "zoh" or "mamba", as in `selective_scan`.

    Returns:
        (batch, H, W, channels) in x's dtype; scanned in float32 (float64 for float64 x), even under autocast.

    Raises:
        ValueError: A shape, type, device or the discretization is wrong.
    """
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
    u = x.permute(0, 3, 1, 2)
    backend = registry.fastest_backend(u, discretization)
    y = backend.scan_projected(u, delta_weight, delta_bias, bc_weight, A, D, discretization)
    return y.to(x.dtype).permute(0, 2, 3, 1)

"""The S6 layer as one operation: projections of Δ, B and C, softplus and scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.selective_scan import native as cpp_backend
from nnunet_mamba_mis.ops.selective_scan.allocation import empty_gradients, empty_outputs
from nnunet_mamba_mis.ops.selective_scan.api import check_discretization, fastest_backend, selective_scan
from nnunet_mamba_mis.ops.selective_scan.operator import (
    gradients_of_inputs,
    gradients_of_outputs,
    save_for_backward,
    saved_tensors,
)


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

    The native backend projects tile by tile, so that Δ, B and C, which are many times as large as x, are neither
    written to memory nor kept for backward. Other backends get them from two linear layers.

    Args:
        x: (batch, H, W, channels), scanned along W, then H; any strides.
        delta_weight: (channels, channels).
        delta_bias: (channels,).
        bc_weight: (2N, channels), rows for B first.
        A: (channels, N).
        D: (channels,).
        discretization: "zoh" or "mamba", as `selective_scan` has it.

    Returns:
        (batch, H, W, channels) in x's dtype; scanned in float32 (float64 for float64 x), also under autocast.

    Raises:
        ValueError: A shape, type, device or the discretization is wrong.
    """
    _check_arguments(x, delta_weight, delta_bias, bc_weight, A, D, discretization)
    u = _channels_second(x)
    if fastest_backend(u, discretization) == "cpp":
        weight = torch.cat([delta_weight, bc_weight])
        return _run_native(u, weight, A, D, delta_bias, discretization).permute(0, 2, 3, 1)
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


def _check_arguments(x, delta_weight, delta_bias, bc_weight, A, D, discretization: str) -> None:
    check_discretization(discretization)
    if x.dim() != 4 or A.dim() != 2 or x.numel() == 0 or A.numel() == 0:
        raise ValueError(
            f"x must be (batch, H, W, channels) and A (channels, N), not empty: {tuple(x.shape)}, {tuple(A.shape)}"
        )
    channels, states = x.shape[-1], A.shape[1]
    for name, tensor, shape in (
        ("delta_weight", delta_weight, (channels, channels)),
        ("delta_bias", delta_bias, (channels,)),
        ("bc_weight", bc_weight, (2 * states, channels)),
        ("A", A, (channels, states)),
        ("D", D, (channels,)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, not {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, as x is, not on {tensor.device}")
    if not x.is_floating_point():
        raise ValueError(f"x must be real floating point, not {x.dtype}")


def _channels_second(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _run_native(u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, discretization: str) -> Tensor:
    """Outputs of `native_s6`, of tensors in any real type; computed in float32, or float64 for float64 u."""
    x, weight, A, D, delta_bias = cpp_backend.prepare(u, weight, A, D, delta_bias)
    exact = discretization == "zoh"
    if native.needs_operator(x, weight, A, D, delta_bias):
        y, _, _ = native_s6(x, weight, A, D, delta_bias, exact, torch.is_grad_enabled())
    else:  # the operator itself takes as long as a short scan
        inputs = {"u": x, "weight": weight, "A": A, "D": D, "delta_bias": delta_bias}
        y, _, _ = cpp_backend.forward(inputs, 1, True, exact, False)
    return y.to(u.dtype)


@torch.library.custom_op("nnunet_mamba_mis::native_s6", mutates_args=(), device_types="cpu")
def native_s6(
    u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, exact: bool, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`operator.scan` with Δ, B and C projected from u, position by position, and softplus of Δ.

    The projections of a tile never leave the cache: they are neither written nor kept for backward.

    Args:
        u: (batch, D, H, W).
        weight: (D + 2N, D), rows for Δ, then B, then C.
        A: (D, N).
        D: (D,).
        delta_bias: (D,).
        exact: Zero-order hold; otherwise Δ stands for (e^{ΔA} − 1)/A.
        keep_starts: Whether states before every so many positions are wanted, as backward does.
    """
    inputs = {"u": u, "weight": weight, "A": A, "D": D, "delta_bias": delta_bias}
    return cpp_backend.forward(inputs, 1, True, exact, keep_starts)


@native_s6.register_fake
def _(u, weight, A, D, delta_bias, exact, keep_starts):
    return empty_outputs(u, A, cpp_backend.block() if keep_starts else None)


@torch.library.custom_op("nnunet_mamba_mis::native_s6_backward", mutates_args=(), device_types="cpu")
def native_s6_backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    u: Tensor,
    weight: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    starts: Tensor,
    exact: bool,
) -> list[Tensor]:
    """Gradients of `native_s6` with respect to its five tensors."""
    inputs = {"u": u, "weight": weight, "A": A, "D": D, "delta_bias": delta_bias}
    return cpp_backend.backward(inputs, 1, starts, grad_y, grad_last_state, True, exact)


@native_s6_backward.register_fake
def _(grad_y, grad_last_state, u, weight, A, D, delta_bias, starts, exact):
    return empty_gradients((u, weight, A, D, delta_bias), grad_y)


def _autograd(ctx, grad_y, grad_last_state, _grad_starts):
    inputs, starts = saved_tensors(ctx)
    exact, _keep_starts = ctx.options
    given = gradients_of_outputs(inputs, grad_y, grad_last_state)
    grads = native_s6_backward(*given, *inputs, starts, exact)
    return gradients_of_inputs(ctx, grads, inputs)


native_s6.register_autograd(_autograd, setup_context=save_for_backward)

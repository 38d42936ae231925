"""The selective scan as native code for CPUs (csrc/), also with projections on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.selective_scan import native_kernel
from nnunet_mamba_mis.ops.selective_scan.allocation import empty_gradients, empty_outputs
from nnunet_mamba_mis.ops.selective_scan.operator import (
    OperatorBackend,
    gradients_of_inputs,
    gradients_of_outputs,
    save_for_backward,
    saved_tensors,
)


class NativeBackend(OperatorBackend):
    """Backend "cpp"."""

    name = "cpp"
    projects = True

    def device(self) -> str:
        """As `Backend.device`."""
        return "cpu"

    def why_unavailable(self) -> str | None:
        """As `Backend.why_unavailable`."""
        return native.why_unavailable()

    def scan_projected(
        self, u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, discretization: str
    ) -> Tensor:
        """As `Backend.scan_projected`."""
        u, weight, A, D, delta_bias = self.prepare(u, weight, A, D, delta_bias)
        exact = discretization == "zoh"
        if native.needs_operator(u, weight, A, D, delta_bias):
            y, _, _ = native_s6(u, weight, A, D, delta_bias, exact, torch.is_grad_enabled())
        else:  # the operator itself takes as long as a short scan
            inputs = {"u": u, "weight": weight, "A": A, "D": D, "delta_bias": delta_bias}
            y, _, _ = native_kernel.forward(inputs, 1, True, exact, False)
        return y

    def prepare(self, *tensors: Any) -> list[Any]:
        """As `OperatorBackend.prepare`: in the one type that the native code computes in."""
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        return [t if t is None else t.to(dtype) for t in tensors]

    block = staticmethod(native_kernel.block)
    forward = staticmethod(native_kernel.forward)
    backward = staticmethod(native_kernel.backward)


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
        keep_starts: Whether to keep the block-start states for backward.
    """
    inputs = {"u": u, "weight": weight, "A": A, "D": D, "delta_bias": delta_bias}
    return native_kernel.forward(inputs, 1, True, exact, keep_starts)


@native_s6.register_fake
def _(u, weight, A, D, delta_bias, exact, keep_starts):
    return empty_outputs(u, A, native_kernel.block() if keep_starts else None)


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
    return native_kernel.backward(inputs, 1, starts, grad_y, grad_last_state, True, exact)


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

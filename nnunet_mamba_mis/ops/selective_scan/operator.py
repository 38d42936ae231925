"""The selective scan as one operator of torch, whichever backend computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.allocation import empty_gradients, empty_outputs
from nnunet_mamba_mis.ops.selective_scan.backend import Backend
from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs

Tensors = Mapping[str, Any]  # by their names in `scan`; None for an optional one that is left out


class OperatorBackend(Backend):
    """A backend with kernels for forward and backward, between which `scan` keeps some states."""

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """As `Backend.scan`."""
        exact = inputs.discretization == "zoh"
        tensors = self.prepare(*inputs[:8])
        y, last_state, _ = scan(*tensors, inputs.delta_softplus, exact, self.name, torch.is_grad_enabled())
        return y, last_state

    def prepare(self, *tensors: Any) -> list[Any]:
        """Tensors of a scan, u first, as the kernels take them."""
        return list(tensors)

    def block(self) -> int:
        """Positions between two states that forward keeps for backward."""
        raise NotImplementedError

    def forward(self, inputs: Tensors, softplus: bool, exact: bool, keep_starts: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, last state and starts of `scan`."""
        raise NotImplementedError

    def backward(
        self, inputs: Tensors, starts: Tensor, grad_y: Tensor, grad_last_state: Tensor, softplus: bool, exact: bool
    ) -> list[Tensor]:
        """Gradients of the tensors, empty for one that is None."""
        raise NotImplementedError


def _engine(name: str) -> OperatorBackend:
    from nnunet_mamba_mis.ops.selective_scan.registry import BACKENDS  # which imports the subclasses of the above

    backend = BACKENDS[name]
    assert isinstance(backend, OperatorBackend)
    return backend


@torch.library.custom_op("nnunet_mamba_mis::selective_scan", mutates_args=())
def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    exact: bool,
    engine: str,
    keep_starts: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (batch, D, H, W), last state (batch, D, N) and the states that backward starts from.

    Positions are scanned along W, then H, whatever the strides.

    Args:
        u: (batch, D, H, W).
        delta: (batch, D, H, W).
        A: (D, N).
        B: (batch, G, N, H, W).
        C: (batch, G, N, H, W).
        D: (D,).
        z: (batch, D, H, W).
        delta_bias: (D,).
        softplus: Whether delta goes through softplus after the bias.
        exact: Zero-order hold; otherwise Δ stands for (e^{ΔA} − 1)/A.
        engine: Name of the backend that computes it, an `OperatorBackend`.
        keep_starts: Whether to keep the block-start states for backward.
    """
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    return _engine(engine).forward(inputs, softplus, exact, keep_starts)


@scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, softplus, exact, engine, keep_starts):
    return empty_outputs(u, A, _engine(engine).block() if keep_starts else None)


@torch.library.custom_op("nnunet_mamba_mis::selective_scan_backward", mutates_args=())
def scan_backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    starts: Tensor,
    softplus: bool,
    exact: bool,
    engine: str,
) -> list[Tensor]:
    """Gradients of `scan` with respect to its eight tensors, empty for one that is None."""
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    return _engine(engine).backward(inputs, starts, grad_y, grad_last_state, softplus, exact)


@scan_backward.register_fake
def _(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, starts, softplus, exact, engine):
    return empty_gradients((u, delta, A, B, C, D, z, delta_bias), grad_y)


def register_gradient(operator: Any, backward: Any) -> None:
    """Let autograd differentiate an operator that returns outputs, last state and starts.

    Args:
        operator: Takes tensors, u first and A third, and options, of which the last is `keep_starts`.
        backward: Takes gradients of outputs and last state, the tensors, starts and the other options. Returns a
            gradient for each tensor, empty for one that is None.
    """

    def set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
        ctx.options = inputs[len(tensors) : -1]
        ctx.set_materialize_grads(False)  # that of starts would be as large as they are
        ctx.save_for_backward(*tensors, output[2])

    def differentiate(ctx: Any, grad_y: Tensor | None, grad_last_state: Tensor | None, _grad_starts: None) -> tuple:
        *tensors, starts = ctx.saved_tensors
        if starts.numel() == 0:
            raise RuntimeError("the scan was run without keep_starts, so it has no gradient")
        u, A = tensors[0], tensors[2]
        if grad_y is None:
            grad_y = torch.zeros_like(u)
        if grad_last_state is None:
            dtype = torch.promote_types(u.dtype, torch.float32)
            grad_last_state = u.new_zeros(u.shape[0], u.shape[1], A.shape[1], dtype=dtype)
        grads = backward(grad_y, grad_last_state, *tensors, starts, *ctx.options)
        present = [None if tensor is None else grad for grad, tensor in zip(grads, tensors, strict=True)]
        return *present, *(None for _ in ctx.options), None

    operator.register_autograd(differentiate, setup_context=set_up)


register_gradient(scan, scan_backward)

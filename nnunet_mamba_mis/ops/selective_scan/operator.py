"""The selective scan as one torch operator, for all backends with kernels of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.allocation import empty_gradients, empty_outputs
from nnunet_mamba_mis.ops.selective_scan.backend import Backend
from nnunet_mamba_mis.ops.selective_scan.chunked import DifferentiableBackend
from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs, check_tensor
from nnunet_mamba_mis.ops.transforms import decompose_gradient, decompose_under_transforms, gradients_in_torch

Tensors = Mapping[str, Any]  # keyed by the names of `scan`'s arguments; an omitted optional tensor is None


class OperatorBackend(Backend):
    """A backend with kernels for forward and backward.

    Forward keeps the state before each block of positions, the block-start states, for backward.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]]  # dtypes of u that the kernels take
    one_dtype: ClassVar[bool]  # whether all tensors of a scan must have the dtype of u

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Implement `Backend.scan`."""
        exact = inputs.discretization == "zoh"
        tensors = self.prepare(*inputs[:8])
        y, last_state, _ = scan(*tensors, inputs.delta_softplus, exact, self.name, torch.is_grad_enabled())
        return y, last_state

    def prepare(self, *tensors: Any) -> list[Any]:
        """Return the tensors of a scan, u first, in the form that the kernels take."""
        return list(tensors)

    def check(self, tensors: Tensors) -> None:
        """Raise a ValueError that names the first tensor whose shape, layout, device or dtype does not fit."""
        u, B = tensors["u"], tensors["B"]
        if u.dim() != 4 or B.dim() != 5:
            raise ValueError(
                "u must be (batch, D, H, W), and B must be (batch, G, N, H, W), "
                f"not {tuple(u.shape)} and {tuple(B.shape)}"
            )
        dtype = u.dtype if self.one_dtype else None
        ScanInputs(**tensors, delta_softplus=False, discretization="zoh").check_tensors(dtype)

    def check_type(self, u: Tensor) -> None:
        """Raise a ValueError unless the kernels take the device and dtype of u."""
        if u.dtype not in self.dtypes:
            raise ValueError(f"u must be {' or '.join(map(str, self.dtypes))}, not {u.dtype}")
        if u.device.type != self.device():
            raise ValueError(f"u must be on {self.device()} for backend {self.name!r}, not on {u.device}")

    def check_gradients(self, tensors: Tensors, starts: Tensor, grad_y: Tensor, grad_last_state: Tensor) -> None:
        """Raise a ValueError unless block-start states and gradients fit forward's results for these tensors."""
        u, A = tensors["u"], tensors["A"]
        batch, channels, height, width = u.shape
        states = A.shape[1]
        dtype = torch.promote_types(u.dtype, torch.float32)
        kept = batch * -(-height * width // self.block()) * channels * states
        check_tensor("starts", starts, (kept,), u.device, dtype)
        check_tensor("grad_y", grad_y, tuple(u.shape), u.device, u.dtype)
        check_tensor("grad_last_state", grad_last_state, (batch, channels, states), u.device, dtype)

    def block(self) -> int:
        """Return the number of positions between two states that forward keeps for backward."""
        raise NotImplementedError

    def forward(self, inputs: Tensors, softplus: bool, exact: bool, keep_starts: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs, last state and block-start states of `scan`."""
        raise NotImplementedError

    def backward(
        self, inputs: Tensors, starts: Tensor, grad_y: Tensor, grad_last_state: Tensor, softplus: bool, exact: bool
    ) -> list[Tensor]:
        """Return the gradients of the tensors; the gradient of None is empty."""
        raise NotImplementedError


def _engine(name: str) -> OperatorBackend:
    from nnunet_mamba_mis.ops.selective_scan.registry import BACKENDS  # imports subclasses of the above

    backend = BACKENDS.get(name)
    if not isinstance(backend, OperatorBackend):
        names = [name for name, backend in BACKENDS.items() if isinstance(backend, OperatorBackend)]
        raise ValueError(f"engine {name!r} is not one of {', '.join(map(repr, names))}")
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
    """Return outputs (batch, D, H, W), the last state (batch, D, N) and the block-start states, which backward needs.

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
        exact: Whether the weight of B_t u_t is (e^{ΔA} − 1)/A, as in the zero-order hold; otherwise it is Δ.
        engine: Name of the backend that computes the scan, an `OperatorBackend`.
        keep_starts: Whether to keep the block-start states for backward.
    """
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    backend = _engine(engine)
    backend.check(inputs)
    backend.check_type(u)
    return backend.forward(inputs, softplus, exact, keep_starts)


@scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, softplus, exact, engine, keep_starts):
    backend = _engine(engine)
    backend.check({"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias})
    return empty_outputs(u, A, backend.block() if keep_starts else None)


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
    """Return the gradients of `scan` with respect to its eight tensors; the gradient of None is empty."""
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    backend = _engine(engine)
    backend.check(inputs)
    backend.check_type(u)
    backend.check_gradients(inputs, starts, grad_y, grad_last_state)
    return backend.backward(inputs, starts, grad_y, grad_last_state, softplus, exact)


@scan_backward.register_fake
def _(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, starts, softplus, exact, engine):
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    _engine(engine).check(inputs)
    return empty_gradients(inputs.values(), grad_y)


def register_gradient(operator: Any, backward: Any, in_torch: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Register autograd for an operator that returns outputs, last state and block-start states.

    Args:
        operator: Operator on tensors (u first, A third) and options (`keep_starts` last).
        backward: Operator on the gradients of outputs and last state, the tensors, the block-start states and the
            options except `keep_starts`. It returns a gradient for each tensor, empty for a tensor that is None.
        in_torch: Function of the tensors and the options except `keep_starts`. It returns outputs and last state, by
            PyTorch operations, for transforms and higher derivatives.
    """

    def set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
        ctx.options = inputs[len(tensors) : -1]
        ctx.set_materialize_grads(False)  # avoids a zero gradient for `starts`, which is large
        ctx.save_for_backward(*tensors, output[2])

    def differentiate(ctx: Any, grad_y: Tensor | None, grad_last_state: Tensor | None, _grad_starts: None) -> tuple:
        *tensors, starts = ctx.saved_tensors
        if starts.numel() == 0:
            raise RuntimeError("the scan ran without keep_starts and has no gradient: run it with keep_starts=True")
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

    def scan_in_torch(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return *in_torch(*arguments[:-1]), arguments[0].new_zeros(0)

    def gradients(grad_y: Tensor, grad_last_state: Tensor, *arguments: Any) -> list[Tensor]:
        count = sum(value is None or isinstance(value, Tensor) for value in arguments) - 1
        tensors, options = arguments[:count], arguments[count + 1 :]

        def of_tensors(*given: Tensor | None) -> tuple[Tensor, Tensor]:
            return in_torch(*given, *options)

        grads = gradients_in_torch(of_tensors, tensors, (grad_y, grad_last_state))
        return [grad_y.new_zeros(0) if gradient is None else gradient for gradient in grads]

    decompose_under_transforms(operator, scan_in_torch)
    decompose_gradient(backward, gradients)


def _scan_in_torch(*arguments: Any) -> tuple[Tensor, Tensor]:
    softplus, exact, _engine_name = arguments[8:]
    tensors = dict(zip(ScanInputs._fields, arguments[:8], strict=False))
    return scan_inputs_in_torch(
        ScanInputs(**tensors, delta_softplus=softplus, discretization="zoh" if exact else "mamba")
    )


def scan_inputs_in_torch(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Return the outputs and last state of `scan`, computed by PyTorch operations that support all transforms."""
    y, last_state = DifferentiableBackend().scan(inputs)
    return y.view(inputs.u.shape).to(inputs.u.dtype), last_state


register_gradient(scan, scan_backward, _scan_in_torch)

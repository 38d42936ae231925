"""The selective scan in native code for CPUs (csrc/), with or without fused projections."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.native_structs import ScanProblem
from nnunet_mamba_mis.ops.selective_scan.allocation import empty_gradients, empty_outputs
from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs, check_tensor
from nnunet_mamba_mis.ops.selective_scan.operator import (
    OperatorBackend,
    Tensors,
    register_gradient,
    scan_inputs_in_torch,
)


class NativeBackend(OperatorBackend):
    """Backend "cpp"."""

    name = "cpp"
    dtypes = (torch.float32, torch.float64)
    one_dtype = True

    def device(self) -> str:
        """Implement `Backend.device`."""
        return "cpu"

    def why_unavailable(self) -> str | None:
        """Implement `Backend.why_unavailable`."""
        return native.why_unavailable()

    def scan_projected(
        self,
        u: Tensor,
        delta_weight: Tensor,
        delta_bias: Tensor,
        bc_weight: Tensor,
        A: Tensor,
        D: Tensor,
        discretization: str,
    ) -> Tensor:
        """Implement `Backend.scan_projected` without writing Δ, B and C to memory or keeping them for backward."""
        tensors = self.prepare(u, torch.cat([delta_weight, bc_weight]), A, D, delta_bias)
        exact = discretization == "zoh"
        if native.needs_operator(*tensors):
            y, _, _ = native_s6(*tensors, exact, torch.is_grad_enabled())
        else:  # calling a torch operator takes as long as a short scan
            y, _, _ = self.forward(_by_name(*tensors), True, exact, False)
        return y

    def prepare(self, *tensors: Any) -> list[Any]:
        """Implement `OperatorBackend.prepare`: convert all tensors to the dtype that the native code computes in."""
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        return [t if t is None else t.to(dtype) for t in tensors]

    def block(self) -> int:
        """Implement `OperatorBackend.block`."""
        return native.library().mamba_mis_tile()

    def forward(self, inputs: Tensors, softplus: bool, exact: bool, keep_starts: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Implement `OperatorBackend.forward`, for the inputs of `native_s6` too."""
        y, last_state, starts = empty_outputs(inputs["u"], inputs["A"], self.block() if keep_starts else None)
        outputs = {"y": y, "last_state": last_state, "starts": starts if keep_starts else None}
        _run("forward", {**inputs, **outputs}, softplus, exact)
        return y, last_state, starts

    def backward(
        self, inputs: Tensors, starts: Tensor, grad_y: Tensor, grad_last_state: Tensor, softplus: bool, exact: bool
    ) -> list[Tensor]:
        """Implement `OperatorBackend.backward`, for the inputs of `native_s6` too."""
        grads = empty_gradients(inputs.values(), grad_y)
        given = {"starts": starts, "grad_y": grad_y, "grad_last_state": grad_last_state}
        outputs = {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True) if inputs[name] is not None}
        _run("backward", {**inputs, **given, **outputs}, softplus, exact)
        return grads


def _run(direction: str, tensors: Tensors, softplus: bool, exact: bool) -> None:
    """Run the native code on tensors named as in `ScanProblem`."""
    u = tensors["u"]
    batch, channels, height, width = u.shape
    problem = ScanProblem(
        batch=batch,
        channels=channels,
        groups=tensors["B"].shape[1] if "B" in tensors else 1,
        states=tensors["A"].shape[1],
        outer=height,
        inner=width,
        is_double=u.dtype == torch.float64,
        softplus=softplus,
        exact=exact,
        threads=native.threads(),
    )
    keep = []  # holds copies until the native code has run
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        strides = getattr(problem, f"{name}_strides", None)
        if strides is None:
            tensor = tensor.contiguous()
            keep.append(tensor)
        else:
            strides[:] = tensor.stride()
        setattr(problem, name, tensor.data_ptr())
        if name in ("weight", "grad_weight"):  # rows for B and C follow those for Δ
            setattr(problem, f"{name}_bc", tensor[channels:].data_ptr())
    native.run(f"scan_{direction}", problem)


@torch.library.custom_op("nnunet_mamba_mis::native_s6", mutates_args=(), device_types="cpu")
def native_s6(
    u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, exact: bool, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `operator.scan` with Δ, B and C projected from u at each position, and softplus on Δ.

    The projections of a tile never leave the cache: they are not written to memory or kept for backward.

    Args:
        u: (batch, D, H, W).
        weight: (D + 2N, D), rows for Δ, then B, then C.
        A: (D, N).
        D: (D,).
        delta_bias: (D,).
        exact: Whether the weight of B_t u_t is (e^{ΔA} − 1)/A, as in the zero-order hold; otherwise it is Δ.
        keep_starts: Whether to keep the block-start states for backward.
    """
    inputs = _by_name(u, weight, A, D, delta_bias)
    _check_s6(inputs)
    NativeBackend().check_type(u)
    return NativeBackend().forward(inputs, True, exact, keep_starts)


@native_s6.register_fake
def _(u, weight, A, D, delta_bias, exact, keep_starts):
    _check_s6(_by_name(u, weight, A, D, delta_bias))
    return empty_outputs(u, A, NativeBackend().block() if keep_starts else None)


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
    """Return the gradients of `native_s6` with respect to its five tensors."""
    inputs = _by_name(u, weight, A, D, delta_bias)
    _check_s6(inputs)
    NativeBackend().check_type(u)
    NativeBackend().check_gradients(inputs, starts, grad_y, grad_last_state)
    return NativeBackend().backward(inputs, starts, grad_y, grad_last_state, True, exact)


@native_s6_backward.register_fake
def _(grad_y, grad_last_state, u, weight, A, D, delta_bias, starts, exact):
    inputs = _by_name(u, weight, A, D, delta_bias)
    _check_s6(inputs)
    return empty_gradients(inputs.values(), grad_y)


def _s6_in_torch(
    u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, exact: bool
) -> tuple[Tensor, Tensor]:
    channels, states = A.shape
    projected = F.linear(u.movedim(1, -1), weight).movedim(-1, 1)
    delta, B, C = projected.split([channels, states, states], dim=1)
    discretization = "zoh" if exact else "mamba"
    inputs = ScanInputs(u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, None, delta_bias, True, discretization)
    return scan_inputs_in_torch(inputs)


register_gradient(native_s6, native_s6_backward, _s6_in_torch)


def _check_s6(tensors: Tensors) -> None:
    u, A = tensors["u"], tensors["A"]
    if u.dim() != 4 or A.dim() != 2 or u.numel() == 0 or A.numel() == 0:
        raise ValueError(
            "u must be (batch, D, H, W), and A must be (D, N), without empty axes, "
            f"not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    channels, states = u.shape[1], A.shape[1]
    shapes = {
        "u": tuple(u.shape),
        "weight": (channels + 2 * states, channels),
        "A": (channels, states),
        "D": (channels,),
        "delta_bias": (channels,),
    }
    for name, shape in shapes.items():
        check_tensor(name, tensors[name], shape, u.device, u.dtype)


def _by_name(*tensors: Tensor) -> Tensors:
    return dict(zip(("u", "weight", "A", "D", "delta_bias"), tensors, strict=True))

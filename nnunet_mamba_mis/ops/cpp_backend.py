"""The selective scan as native code for CPUs (csrc/scan.h)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from nnunet_mamba_mis.ops import native

_INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "weight")


class _Problem(ctypes.Structure):
    """ScanProblem of csrc/scan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "groups", "states", "outer", "inner")),
        *((name, ctypes.c_void_p) for name in _INPUTS),
        *((name, ctypes.c_int64 * 4) for name in ("u_strides", "delta_strides", "z_strides")),
        *((name, ctypes.c_int64 * 5) for name in ("B_strides", "C_strides")),
        *((name, ctypes.c_void_p) for name in ("y", "last_state", "starts")),
        ("y_strides", ctypes.c_int64 * 4),
        *((name, ctypes.c_void_p) for name in ("grad_y", "grad_last_state")),
        ("grad_y_strides", ctypes.c_int64 * 4),
        *((f"grad_{name}", ctypes.c_void_p) for name in _INPUTS),
        *((name, ctypes.c_int64 * 4) for name in ("grad_u_strides", "grad_delta_strides", "grad_z_strides")),
        *((name, ctypes.c_int64 * 5) for name in ("grad_B_strides", "grad_C_strides")),
        *((name, ctypes.c_int32) for name in ("is_double", "softplus", "exact")),
        ("threads", native.Threads),
    ]


def selective_scan_cpp(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
    discretization: str,
) -> Tensor | tuple[Tensor, Tensor]:
    """Native scan; arguments and result as `nnunet_mamba_mis.ops.selective_scan`."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    x, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    D, z, delta_bias = (t if t is None else t.to(dtype) for t in (D, z, delta_bias))
    # without a group axis, there is one group; without a second axis of positions, one row of them
    B, C = (t.unsqueeze(1) if t.dim() == u.dim() else t for t in (B, C))
    if u.dim() == 3:
        x, delta, B, C = (t.unsqueeze(-2) for t in (x, delta, B, C))
        z = z if z is None else z.unsqueeze(-2)
    y, last_state, _ = native_scan(
        x, delta, A, B, C, D, z, delta_bias, delta_softplus, discretization == "zoh", torch.is_grad_enabled()
    )
    y = (y if u.dim() == 4 else y.squeeze(-2)).to(u.dtype)
    return (y, last_state) if return_last_state else y


@torch.library.custom_op("nnunet_mamba_mis::native_scan", mutates_args=(), device_types="cpu")
def native_scan(
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
    keep_starts: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (batch, D, H, W), last state (batch, D, N) and states at tile starts (batch, tiles, D, N).

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
        keep_starts: Whether states at tile starts are wanted, as backward does.
    """
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    return _forward(inputs, B.shape[1], softplus, exact, keep_starts)


@native_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, softplus, exact, keep_starts):
    return _empty_outputs(u, A, keep_starts)


@torch.library.custom_op("nnunet_mamba_mis::native_scan_backward", mutates_args=(), device_types="cpu")
def native_scan_backward(
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
) -> list[Tensor]:
    """Gradients of `native_scan` with respect to its eight tensors, empty for one that is None."""
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    return _backward(inputs, B.shape[1], starts, grad_y, grad_last_state, softplus, exact)


@native_scan_backward.register_fake
def _(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, starts, softplus, exact):
    return _empty_gradients((u, delta, A, B, C, D, z, delta_bias))


def s6_cpp(u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, discretization: str) -> Tensor:
    """Outputs of `native_s6`, of tensors in any real type; computed in float32, or float64 for float64 u."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    x, weight, A, D, delta_bias = (t.to(dtype) for t in (u, weight, A, D, delta_bias))
    exact = discretization == "zoh"
    if native.needs_operator(x, weight, A, D, delta_bias):
        y, _, _ = native_s6(x, weight, A, D, delta_bias, exact, torch.is_grad_enabled())
    else:  # the operator itself takes as long as a short scan
        inputs = {"u": x, "weight": weight, "A": A, "D": D, "delta_bias": delta_bias}
        y, _, _ = _forward(inputs, 1, True, exact, False)
    return y.to(u.dtype)


@torch.library.custom_op("nnunet_mamba_mis::native_s6", mutates_args=(), device_types="cpu")
def native_s6(
    u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, exact: bool, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`native_scan` with Δ, B and C projected from u, position by position, and softplus of Δ.

    The projections of a tile never leave the cache: they are neither written nor kept for backward.

    Args:
        u: (batch, D, H, W).
        weight: (D + 2N, D), rows for Δ, then B, then C.
        A: (D, N).
        D: (D,).
        delta_bias: (D,).
        exact: Zero-order hold; otherwise Δ stands for (e^{ΔA} − 1)/A.
        keep_starts: Whether states at tile starts are wanted, as backward does.
    """
    inputs = {"u": u, "weight": weight, "A": A, "D": D, "delta_bias": delta_bias}
    return _forward(inputs, 1, True, exact, keep_starts)


@native_s6.register_fake
def _(u, weight, A, D, delta_bias, exact, keep_starts):
    return _empty_outputs(u, A, keep_starts)


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
    return _backward(inputs, 1, starts, grad_y, grad_last_state, True, exact)


@native_s6_backward.register_fake
def _(grad_y, grad_last_state, u, weight, A, D, delta_bias, starts, exact):
    return _empty_gradients((u, weight, A, D, delta_bias))


def _setup_context(ctx, inputs, output) -> None:
    *inputs, _keep_starts = inputs
    ctx.options = [value for value in inputs if isinstance(value, bool)]
    ctx.save_for_backward(*inputs[: -len(ctx.options)], output[2])


def _autograd(backward, ctx, grad_y, grad_last_state, _grad_starts):
    *inputs, starts = ctx.saved_tensors
    if starts.numel() == 0:
        raise RuntimeError("the scan was run without keep_starts, so it has no gradient")
    grads = backward(grad_y, grad_last_state, *inputs, starts, *ctx.options)
    present = (grad if tensor is not None else None for grad, tensor in zip(grads, inputs, strict=True))
    return *present, *(None for _ in ctx.options), None


native_scan.register_autograd(functools.partial(_autograd, native_scan_backward), setup_context=_setup_context)
native_s6.register_autograd(functools.partial(_autograd, native_s6_backward), setup_context=_setup_context)


def _forward(
    inputs: Mapping[str, Tensor | None], groups: int, softplus: bool, exact: bool, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    present = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    y, last_state, starts = _empty_outputs(present["u"], present["A"], keep_starts)
    outputs = {"y": y, "last_state": last_state} | ({"starts": starts} if keep_starts else {})
    _run("forward", present | outputs, groups, softplus, exact)
    return y, last_state, starts


def _backward(
    inputs: Mapping[str, Tensor | None],
    groups: int,
    starts: Tensor,
    grad_y: Tensor,
    grad_last_state: Tensor,
    softplus: bool,
    exact: bool,
) -> list[Tensor]:
    grads = _empty_gradients(inputs.values())
    present = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    given = {"starts": starts, "grad_y": grad_y, "grad_last_state": grad_last_state}
    wanted = {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True) if name in present}
    _run("backward", present | given | wanted, groups, softplus, exact)
    return grads


def _empty_outputs(u: Tensor, A: Tensor, keep_starts: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = u.shape
    tiles = -(-height * width // native.library().mamba_mis_tile()) if keep_starts else 0
    states = A.shape[1]
    return torch.empty_like(u), u.new_empty(batch, channels, states), u.new_empty(batch, tiles, channels, states)


def _empty_gradients(inputs: Iterable[Tensor | None]) -> list[Tensor]:
    return [
        torch.empty(0) if t is None else _empty_in_order(t) if t.dim() > 2 else t.new_empty(t.shape) for t in inputs
    ]


def _empty_in_order(t: Tensor) -> Tensor:
    """A dense tensor, axes in memory in the order of those of t: `empty_like` does this for a dense t alone."""
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    return t.new_empty([t.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(t.dim())])


def _run(direction: str, tensors: Mapping[str, Tensor], groups: int, softplus: bool, exact: bool) -> None:
    """Run the native code on tensors by their names in `ScanProblem`."""
    u = tensors["u"]
    batch, channels, height, width = u.shape
    problem = _Problem(
        batch=batch,
        channels=channels,
        groups=groups,
        states=tensors["A"].shape[1],
        outer=height,
        inner=width,
        is_double=u.dtype == torch.float64,
        softplus=softplus,
        exact=exact,
        threads=native.threads(),
    )
    keep = []  # copies must live until the code has run
    for name, tensor in tensors.items():
        strides = getattr(problem, f"{name}_strides", None)
        if strides is None:
            tensor = tensor.contiguous()
            keep.append(tensor)
        else:
            strides[:] = tensor.stride()
        setattr(problem, name, tensor.data_ptr())
    native.run(f"scan_{direction}", problem)

"""The selective scan as native code for CPUs (csrc/scan.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.selective_scan.allocation import empty_gradients, empty_outputs

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


def block() -> int:
    """Positions between two states that forward keeps for backward."""
    return native.library().mamba_mis_tile()


def prepare(*tensors: Any) -> list[Any]:
    """The arguments of a scan, u first, in the one type that the native code computes in."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [t if t is None else t.to(dtype) for t in tensors]


def forward(
    inputs: Mapping[str, Tensor | None], groups: int, softplus: bool, exact: bool, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state and starts of `operator.scan`, or of `s6.native_s6`, for inputs by their names there."""
    present = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    y, last_state, starts = empty_outputs(present["u"], present["A"], block() if keep_starts else None)
    outputs = {"y": y, "last_state": last_state} | ({"starts": starts} if keep_starts else {})
    _run("forward", present | outputs, groups, softplus, exact)
    return y, last_state, starts


def backward(
    inputs: Mapping[str, Tensor | None],
    groups: int,
    starts: Tensor,
    grad_y: Tensor,
    grad_last_state: Tensor,
    softplus: bool,
    exact: bool,
) -> list[Tensor]:
    """Gradients of the inputs, empty for one that is None."""
    grads = empty_gradients(inputs.values(), grad_y)
    present = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    given = {"starts": starts, "grad_y": grad_y, "grad_last_state": grad_last_state}
    wanted = {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True) if name in present}
    _run("backward", present | given | wanted, groups, softplus, exact)
    return grads


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

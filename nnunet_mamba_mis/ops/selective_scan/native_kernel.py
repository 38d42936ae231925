"""Calls of the native scan (csrc/scan.h)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.native_structs import ScanProblem
from nnunet_mamba_mis.ops.selective_scan.allocation import empty_gradients, empty_outputs


def block() -> int:
    """Positions between two states that forward keeps for backward."""
    return native.library().mamba_mis_tile()


def forward(
    inputs: Mapping[str, Tensor | None], groups: int, softplus: bool, exact: bool, keep_starts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state and starts of `operator.scan`, or of `native.native_s6`, for inputs by their names there."""
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
    problem = ScanProblem(
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

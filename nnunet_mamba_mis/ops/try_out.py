"""A small scan by Triton's kernels against PyTorch's, before a GPU is trusted with real ones."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from nnunet_mamba_mis.ops import triton_backend
from nnunet_mamba_mis.ops.operator import run_operator
from nnunet_mamba_mis.ops.torch_backend import selective_scan_torch

_TOLERANCE = 1e-3  # relative to the largest value; float32 gives about 1e-6


def why_triton_unsuitable(u: Tensor, _discretization: str) -> str | None:
    """Why the kernels cannot take these arguments of a scan, or None."""
    if u.dtype == torch.float64:
        return "it has no float64"
    if u.dim() > 2 and u.shape[2:].numel() >= 2**31:
        return "it has no sequences of 2³¹ positions or more"
    return None if triton_backend.interpreted() else _why_wrong(u.device.index)


@torch.compiler.assume_constant_result  # a scan of its own, not of what is being traced
def _why_wrong(device_index: int) -> str | None:
    return why_wrong(torch.device("cuda", device_index))


@functools.cache
def why_wrong(device: torch.device) -> str | None:
    """What is wrong with a small scan on this device, or None; tried once in a process.

    A new GPU, driver or Triton may break kernels, or worse, bend them: nobody should find out by their results.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (2, 10, 40), "delta": (2, 10, 40), "A": (10, 5), "B": (2, 2, 5, 40), "C": (2, 2, 5, 40)}
    shapes |= {"D": (10,), "z": (2, 10, 40), "delta_bias": (10,)}
    tensors = {name: torch.randn(shape, generator=generator).to(device) for name, shape in shapes.items()}
    try:
        ours = _values_and_gradients(functools.partial(run_operator, "triton"), tensors)
        expected = _values_and_gradients(selective_scan_torch, tensors)
    except Exception as error:  # whatever a compiler or a driver raises
        return f"a small scan fails on {device} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    for name, value in expected.items():
        off = ((ours[name] - value).abs().max() / value.abs().max()).item()
        if not off <= _TOLERANCE:
            return f"{name} of a small scan is off by {off:.1e} on {device}"
    return None


def _values_and_gradients(run, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    with torch.enable_grad(), torch.autocast(next(iter(tensors.values())).device.type, enabled=False):
        arguments = leaves | {"A": -leaves["A"].abs()}
        y = run(*arguments.values(), True, False, "zoh")
        gradients = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    return {"y": y.detach()} | {f"the gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}

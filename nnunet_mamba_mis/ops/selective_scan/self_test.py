"""A small scan by Triton's kernels against PyTorch's, before a GPU is trusted with real ones."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nnunet_mamba_mis.ops.selective_scan import triton as triton_backend
from nnunet_mamba_mis.ops.selective_scan.chunked import selective_scan_torch
from nnunet_mamba_mis.ops.selective_scan.operator import run_operator

_TOLERANCE = 1e-3  # relative to the largest value; float32 gives about 1e-6
_MOST_POSITIONS = 2**31 - 2**16  # so that those of idle lanes, behind the last, fit into 32 bits


def why_triton_unsuitable(u: Tensor, _discretization: str) -> str | None:
    """Why the kernels cannot take these arguments of a scan, or None."""
    if u.dtype == torch.float64:
        return "it has no float64"
    if u.dim() > 2 and u.shape[2:].numel() > _MOST_POSITIONS:
        return f"it has no sequences of more than {_MOST_POSITIONS} positions"
    return None if triton_backend.interpreted() else _why_wrong(u.device.index)


@torch.compiler.assume_constant_result  # a scan of its own, not of what is being traced
def _why_wrong(device_index: int) -> str | None:
    if torch.cuda.is_current_stream_capturing():
        return None  # nothing else can run now
    return why_wrong(torch.device("cuda", device_index))


@functools.cache
def why_wrong(device: torch.device) -> str | None:
    """What is wrong with a small scan on this device, or None; tried once in a process.

    A new GPU, driver or Triton may break kernels, or worse, bend them: nobody should find out by their results. The
    scan is one of the network's, so that the kernels compiled for it are used again.
    """
    # whoever asks may be predicting, tracing, or working with fake tensors
    no_autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), no_autocast, _disable_current_modes():
        return _compare(device)


def _compare(device: torch.device) -> str | None:
    tensors = _arguments(device)
    try:
        ours = _values_and_gradients(functools.partial(run_operator, "triton"), tensors)
    except torch.OutOfMemoryError:
        raise  # which says nothing about kernels
    except Exception as error:  # whatever a compiler or a driver raises
        return f"a small scan fails on {device} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    for name, expected in _values_and_gradients(selective_scan_torch, tensors).items():
        off = ((ours[name] - expected).abs().max() / expected.abs().max()).item()
        if not off <= _TOLERANCE:
            return f"{name} of a small scan is off by {off:.1e} on {device}"
    return None


def _arguments(device: torch.device) -> dict[str, Tensor]:
    """Of a scan over channels-last features of 8 × 8 pixels, with 8 channels and 32 states."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device)

    B, C = normal(2, 8, 8, 64).permute(0, 3, 1, 2).chunk(2, dim=1)
    sequences = {name: normal(2, 8, 8, 8).permute(0, 3, 1, 2) for name in ("u", "delta")}
    return {**sequences, "A": -normal(8, 32).abs(), "B": B, "C": C, "D": normal(8), "delta_bias": normal(8)}


def _values_and_gradients(run, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    if run is selective_scan_torch:  # which knows one axis of positions
        arguments = {name: t.flatten(2) if t.dim() > 2 else t for name, t in leaves.items()}
    else:
        arguments = leaves
    y = run(**arguments, z=None, delta_softplus=True, return_last_state=False, discretization="zoh")
    gradients = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    return {"y": y.detach().flatten(2)} | {
        f"the gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)
    }

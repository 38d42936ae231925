"""Compare a small scan by a backend with the same scan in PyTorch, before a GPU runs real scans."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nnunet_mamba_mis.ops.selective_scan.backend import Backend
from nnunet_mamba_mis.ops.selective_scan.chunked import TorchBackend
from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs

_TOLERANCE = 1e-3  # relative to the largest value; float32 gives about 1e-6


def why_wrong(backend: Backend, device: torch.device) -> str | None:
    """Return the problem with a small scan by a backend on a device, or None.

    With a new GPU, driver or Triton version, kernels may fail or, worse, compute wrong values, which must not reach
    results. The small scan has the form of the network's scans, so that both use the same compiled kernels.
    """
    # the caller may be in inference mode, tracing, or using fake tensors
    no_autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), no_autocast, _disable_current_modes():
        return _compare(backend, device)


def _compare(backend: Backend, device: torch.device) -> str | None:
    tensors = _arguments(device)
    try:
        ours = _values_and_gradients(backend, tensors)
    except torch.OutOfMemoryError:
        raise  # not an error of the kernels
    except Exception as error:  # compilers and drivers can raise anything
        return f"a small scan fails on {device} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    for name, expected in _values_and_gradients(TorchBackend(), tensors).items():
        off = ((ours[name] - expected).abs().max() / expected.abs().max()).item()
        if not off <= _TOLERANCE:
            return f"{name} of a small scan has a relative error of {off:.1e} on {device}"
    return None


def _arguments(device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of a scan over channels-last features of 8 × 8 pixels, with 8 channels and 32 states."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device)

    B, C = normal(2, 8, 8, 64).permute(0, 3, 1, 2).chunk(2, dim=1)
    sequences = {name: normal(2, 8, 8, 8).permute(0, 3, 1, 2) for name in ("u", "delta")}
    return {**sequences, "A": -normal(8, 32).abs(), "B": B, "C": C, "D": normal(8), "delta_bias": normal(8)}


def _values_and_gradients(backend: Backend, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y, _ = backend.scan(ScanInputs(**leaves, z=None, delta_softplus=True, discretization="zoh").checked())
    gradients = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    return {"y": y.detach().flatten(2)} | {
        f"the gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)
    }

"""The selective scan with mamba_ssm's CUDA kernel, an optional dependency."""

from __future__ import annotations

import importlib
import importlib.util

import torch
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.backend import Backend
from nnunet_mamba_mis.ops.selective_scan.chunked import DifferentiableBackend
from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs
from nnunet_mamba_mis.ops.transforms import transformed


class MambaSSMBackend(Backend):
    """Backend "mamba_ssm"."""

    name = "mamba_ssm"

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Implement `Backend.scan`."""
        if transformed():  # mamba_ssm's kernel has only the first derivative
            return DifferentiableBackend().scan(inputs)
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        u, delta, A, B, C, D, z, delta_bias, delta_softplus, _ = inputs.over_one_axis()
        # the kernel takes float32 parameters, and positions that are contiguous in memory
        A, D, delta_bias = (t if t is None else t.float() for t in (A, D, delta_bias))  # type: ignore[assignment]
        sequences = [t if t is None else t.to(u.dtype).contiguous() for t in (u, delta, B, C, z)]
        u, delta, B, C, z = sequences  # type: ignore[assignment]
        return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)

    def device(self) -> str:
        """Implement `Backend.device`."""
        return "cuda"

    def why_unavailable(self) -> str | None:
        """Implement `Backend.why_unavailable`."""
        # mamba-ssm can be installed without its CUDA kernel: it then imports, but fails when called
        if importlib.util.find_spec("mamba_ssm") is None:
            return "mamba-ssm is not installed (optional: pip install --no-build-isolation mamba-ssm causal-conv1d)"
        if importlib.util.find_spec("selective_scan_cuda") is None:
            return "mamba-ssm was built without its CUDA kernel (rebuild it with MAMBA_KEEP_CUDA_BUILD=TRUE)"
        if not torch.cuda.is_available():
            return "no usable CUDA device was found"
        try:
            importlib.import_module("selective_scan_cuda")
        except ImportError as error:
            return f"mamba-ssm's CUDA kernel was built for another torch ({error}): rebuild or uninstall mamba-ssm"
        return None

    def why_unsuitable(self, u: Tensor, discretization: str) -> str | None:
        """Implement `Backend.why_unsuitable`."""
        if discretization != "mamba":
            return f"it supports only the 'mamba' discretization, not {discretization!r}"
        if u.dtype == torch.float64:
            return "it does not support float64"
        return None

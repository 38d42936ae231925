"""List all backends of the scan, and choose one."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.backend import Backend
from nnunet_mamba_mis.ops.selective_scan.chunked import TorchBackend
from nnunet_mamba_mis.ops.selective_scan.mamba_ssm import MambaSSMBackend
from nnunet_mamba_mis.ops.selective_scan.native import NativeBackend
from nnunet_mamba_mis.ops.selective_scan.reference import ReferenceBackend
from nnunet_mamba_mis.ops.selective_scan.triton import TritonBackend
from nnunet_mamba_mis.ops.tracing import constant_when_traced

logger = logging.getLogger(__name__)

# fastest first
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (TritonBackend(), MambaSSMBackend(), NativeBackend(), TorchBackend(), ReferenceBackend())
}


@constant_when_traced  # the search for libraries cannot be traced
def available_backends() -> list[str]:
    """Return the names of the backends that work on this machine, fastest first."""
    return list(_find_available())


def fastest_backend(u: Tensor, discretization: str) -> Backend:
    """Return the fastest backend that works on this machine and for these arguments of `selective_scan`.

    If u is on a GPU and no GPU backend is suitable, a warning gives the reasons once.
    """
    backends = (BACKENDS[name] for name in available_backends())
    backend = next(b for b in backends if _why_unsuitable(b, u, discretization) is None)
    if u.device.type == "cuda" and backend.device() != "cuda":
        _explain(u.device.index, u.dtype, discretization)
    return backend


def named_backend(name: str, u: Tensor, discretization: str) -> Backend:
    """Return the backend of this name.

    Raises:
        ValueError: No backend has this name.
        RuntimeError: The backend does not work on this machine or for these arguments.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not one of 'auto', {', '.join(map(repr, BACKENDS))}")
    backend = BACKENDS[name]
    reason = _why_unavailable(name) or _why_unsuitable(backend, u, discretization)
    if reason:
        raise RuntimeError(f"scan backend {name!r} cannot run: {reason}. Use backend='auto'.")
    return backend


@functools.cache
def _find_available() -> tuple[str, ...]:
    names = sorted(BACKENDS, key=lambda name: BACKENDS[name].is_emulated())
    return tuple(name for name in names if BACKENDS[name].why_unavailable() is None)


@constant_when_traced
def _why_unavailable(name: str) -> str | None:
    return BACKENDS[name].why_unavailable()


def _why_unsuitable(backend: Backend, u: Tensor, discretization: str) -> str | None:
    device = backend.device()
    if device is not None and u.device.type != device:
        return f"its tensors must be on {device}, not {u.device}"
    return backend.why_unsuitable(u, discretization)


@constant_when_traced  # logging cannot be traced
def _explain(device_index: int, dtype: torch.dtype, discretization: str) -> None:
    _warn_once(device_index, dtype, discretization)


@functools.cache
def _warn_once(device_index: int, dtype: torch.dtype, discretization: str) -> None:
    u = torch.empty(0, dtype=dtype, device=torch.device("cuda", device_index))
    reasons = (
        f"{name}: {backend.why_unavailable() or _why_unsuitable(backend, u, discretization)}"
        for name, backend in BACKENDS.items()
        if backend.device() == "cuda"
    )
    logger.warning(
        "The selective scan on %s falls back to slower PyTorch operations, as no GPU backend is usable: %s",
        u.device,
        "; ".join(reasons),
    )

"""The selective scan behind one signature, and the choice of who computes it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.selective_scan import triton as triton_backend
from nnunet_mamba_mis.ops.selective_scan.chunked import selective_scan_torch
from nnunet_mamba_mis.ops.selective_scan.operator import run_operator
from nnunet_mamba_mis.ops.selective_scan.reference import selective_scan_reference
from nnunet_mamba_mis.ops.selective_scan.self_test import why_triton_unsuitable

DISCRETIZATIONS = ("zoh", "mamba")


logger = logging.getLogger(__name__)


class Backend(NamedTuple):
    """One implementation of the scan.

    Each of the two reasons is a text for people, or None if nothing stands in the way.
    """

    run: Callable[..., Tensor | tuple[Tensor, Tensor]]
    device: Callable[[], str | None]  # type of the tensors that it takes; None for any
    why_unavailable: Callable[[], str | None]  # on this machine
    why_unsuitable: Callable[[Tensor, str], str | None]  # for this u and discretization


def _always(*_) -> None:
    return None


def _cpu() -> str:
    return "cpu"


def _cuda() -> str:
    return "cuda"


def _run_reference(*args):
    *arguments, discretization = args
    return selective_scan_reference(*arguments, discretization=discretization)


def _over_one_axis(run: Callable[..., Tensor | tuple[Tensor, Tensor]]) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """Let a scan over L positions take (H, W) positions too, by copies where strides ask for them."""

    def run_flat(u, delta, A, B, C, D, z, *rest):
        if u.dim() == 3:
            return run(u, delta, A, B, C, D, z, *rest)
        flat_u, delta, B, C = (t.flatten(-2) for t in (u, delta, B, C))
        result = run(flat_u, delta, A, B, C, D, z if z is None else z.flatten(-2), *rest)
        if isinstance(result, tuple):
            return result[0].view(u.shape), result[1]
        return result.view(u.shape)

    return run_flat


def _run_mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, discretization):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    # its kernel wants float32 parameters and positions last in memory
    A, D, delta_bias = (t if t is None else t.float() for t in (A, D, delta_bias))
    u, delta, B, C, z = (t if t is None else t.to(u.dtype).contiguous() for t in (u, delta, B, C, z))
    return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def _mamba_ssm_unavailable() -> str | None:
    # mamba-ssm can be there without its CUDA kernel; it then imports, and fails when called
    if importlib.util.find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed (optional: pip install --no-build-isolation mamba-ssm causal-conv1d)"
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return "mamba-ssm was built without its CUDA kernel (rebuild it with MAMBA_KEEP_CUDA_BUILD=TRUE)"
    if not torch.cuda.is_available():
        return "there is no usable CUDA device"
    try:
        importlib.import_module("selective_scan_cuda")
    except ImportError as error:
        return f"mamba-ssm's CUDA kernel does not fit this torch ({error}); rebuild it, or leave it"
    return None


def _mamba_ssm_unsuitable(u: Tensor, discretization: str) -> str | None:
    if discretization != "mamba":
        return f"it has the 'mamba' discretization only, not {discretization!r}"
    if u.dtype == torch.float64:
        return "it has no float64"
    return None


# fastest first
BACKENDS = {
    "triton": Backend(
        functools.partial(run_operator, "triton"),
        triton_backend.device,
        triton_backend.why_unavailable,
        why_triton_unsuitable,
    ),
    "mamba_ssm": Backend(_over_one_axis(_run_mamba_ssm), _cuda, _mamba_ssm_unavailable, _mamba_ssm_unsuitable),
    "cpp": Backend(functools.partial(run_operator, "cpp"), _cpu, native.why_unavailable, _always),
    "torch": Backend(_over_one_axis(selective_scan_torch), _always, _always, _always),
    "reference": Backend(_over_one_axis(_run_reference), _always, _always, _always),
}


def available_backends() -> list[str]:
    """Names of the backends that work on this machine, fastest first."""
    return list(_available())


@torch.compiler.assume_constant_result  # looking for libraries cannot be traced
def _available() -> tuple[str, ...]:
    return _find_available()


@functools.cache
def _find_available() -> tuple[str, ...]:
    # what is interpreted is the slowest of all
    names = sorted(BACKENDS, key=lambda name: name == "triton" and triton_backend.interpreted())
    return tuple(name for name in names if BACKENDS[name].why_unavailable() is None)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    discretization: str = "mamba",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan h_t = e^{ΔA} h_{t−1} + w_t B_t u_t, y_t = ⟨C_t, h_t⟩ + D u_t, from a zero state.

    A drop-in for mamba_ssm's `selective_scan_fn` on every device. Runs in float32 (float64 for float64 u), also under
    autocast; tensors may have any strides. Positions may also have two axes, (H, W) in place of L everywhere: they are
    scanned along W, then H. So `x.mT` is an image's column-major order, which the native backend scans in place.

    Args:
        u: Input, (batch, D, L) or (batch, D, H, W).
        delta: Step sizes before bias and softplus, (batch, D, L).
        A: State matrix, (D, N), real.
        B: Input weights, (batch, N, L), or (batch, G, N, L) where each of G groups serves D/G neighbouring channels.
        C: Output weights, shaped as B.
        D: Skip weights, (D,).
        z: Gate, (batch, D, L): the output is multiplied by SiLU(z).
        delta_bias: Added to delta, (D,).
        delta_softplus: Whether delta goes through softplus after the bias.
        return_last_state: Whether to return the state after position L too.
        discretization: "mamba", w = Δ, as the Mamba papers' code has it; or "zoh", w = (e^{ΔA} − 1)/A, the exact
            zero-order hold (Gu and Dao 2023, equation 4).
        backend: A name from `available_backends()`, or "auto" for the fastest that suits. A named one never falls back.

    Returns:
        y (batch, D, L) in u's dtype; with return_last_state also the last state (batch, D, N), float32 or float64.

    Raises:
        ValueError: A shape, dtype, discretization or backend name is wrong.
        RuntimeError: The named backend does not work here or for these arguments.
    """
    _check_arguments(u, delta, A, B, C, D, z, delta_bias, discretization)
    if backend == "auto":
        backend = fastest_backend(u, discretization)
    else:
        _check_backend(backend, u, discretization)
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, discretization)
    return BACKENDS[backend].run(*arguments)


def fastest_backend(u: Tensor, discretization: str) -> str:
    """Name of the fastest backend that works on this machine and for these arguments of `selective_scan`.

    Where that is PyTorch on a GPU, a warning says once why the faster ones are not it.
    """
    name = next(name for name in _available() if _why_unsuitable(name, u, discretization) is None)
    if name == "torch" and u.device.type == "cuda":
        _explain(u.device.index, u.dtype, discretization)
    return name


@torch.compiler.assume_constant_result
def _why_unavailable(name: str) -> str | None:
    return BACKENDS[name].why_unavailable()


def _why_unsuitable(name: str, u: Tensor, discretization: str) -> str | None:
    backend = BACKENDS[name]
    device = backend.device()
    if device is not None and u.device.type != device:
        return f"its tensors must be on {device}, not {u.device}"
    return backend.why_unsuitable(u, discretization)


@torch.compiler.assume_constant_result  # logging cannot be traced
def _explain(device_index: int, dtype: torch.dtype, discretization: str) -> None:
    _warn_once(device_index, dtype, discretization)


@functools.cache
def _warn_once(device_index: int, dtype: torch.dtype, discretization: str) -> None:
    u = torch.empty(0, dtype=dtype, device=torch.device("cuda", device_index))
    reasons = (
        f"{name}: {backend.why_unavailable() or _why_unsuitable(name, u, discretization)}"
        for name, backend in BACKENDS.items()
        if name in ("triton", "mamba_ssm")
    )
    logger.warning("Selective scan on %s runs as PyTorch operations. Not as %s", u.device, "; ".join(reasons))


def _check_backend(name: str, u: Tensor, discretization: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not one of 'auto', {', '.join(map(repr, BACKENDS))}")
    reason = _why_unavailable(name) or _why_unsuitable(name, u, discretization)
    if reason:
        raise RuntimeError(f"scan backend {name!r} cannot run: {reason}. Use backend='auto'.")


def check_discretization(name: str) -> None:
    """Raise a ValueError unless it is one of `DISCRETIZATIONS`."""
    if name not in DISCRETIZATIONS:
        raise ValueError(f"discretization {name!r} is not one of {', '.join(map(repr, DISCRETIZATIONS))}")


def _check_arguments(u, delta, A, B, C, D, z, delta_bias, discretization) -> None:
    check_discretization(discretization)
    if u.dim() not in (3, 4) or A.dim() != 2 or 0 in u.shape or 0 in A.shape:
        raise ValueError(
            f"u must be (batch, D, L) or (batch, D, H, W) and A (D, N), none empty, "
            f"not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    batch, channels, *positions = u.shape
    expected = {"delta": (delta, u.shape), "A": (A, (channels, A.shape[1])), "z": (z, u.shape)}
    expected |= {"D": (D, (channels,)), "delta_bias": (delta_bias, (channels,))}
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != torch.Size(shape):
            raise ValueError(f"{name} must be {tuple(shape)}, not {tuple(tensor.shape)}")
    for name, tensor in {"B": B, "C": C}.items():
        grouped = tensor.dim() == u.dim() + 1
        groups = tensor.shape[1] if grouped else 1
        shape = (batch, groups, A.shape[1], *positions) if grouped else (batch, A.shape[1], *positions)
        if tensor.shape != torch.Size(shape) or channels % groups:
            raise ValueError(
                f"{name} must be (batch, N, L) or (batch, G, N, L) with batch {batch}, N {A.shape[1]}, "
                f"L {' × '.join(map(str, positions))} and a G that divides D = {channels}, not {tuple(tensor.shape)}"
            )
    if B.dim() != C.dim() or (B.dim() == u.dim() + 1 and B.shape[1] != C.shape[1]):
        raise ValueError(f"B and C must have the same groups, not {tuple(B.shape)} and {tuple(C.shape)}")
    for name, tensor in {
        "u": u,
        "delta": delta,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "delta_bias": delta_bias,
    }.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be real floating point, not {tensor.dtype}")
        if tensor is not None and tensor.device != u.device:
            raise ValueError(f"{name} must be on {u.device}, as u is, not on {tensor.device}")

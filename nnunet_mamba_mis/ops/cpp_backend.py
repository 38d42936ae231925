"""The selective scan as native code for CPUs (csrc/), through ctypes: no torch header, no tie to a torch version."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_REBUILD = (
    "Install a compiler (Debian, Ubuntu: apt install g++), then, in the folder of the source: "
    "pip install --force-reinstall --no-deps ."
)
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")  # best first


class _Problem(ctypes.Structure):
    """ScanProblem of csrc/scan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "groups", "states", "outer", "inner")),
        *((name, ctypes.c_void_p) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")),
        *((name, ctypes.c_int64 * 4) for name in ("u_strides", "delta_strides")),
        *((name, ctypes.c_int64 * 5) for name in ("B_strides", "C_strides")),
        *((name, ctypes.c_void_p) for name in ("y", "last_state", "starts")),
        ("y_strides", ctypes.c_int64 * 4),
        *((name, ctypes.c_void_p) for name in ("grad_y", "grad_last_state")),
        ("grad_y_strides", ctypes.c_int64 * 4),
        *((f"grad_{name}", ctypes.c_void_p) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")),
        *((name, ctypes.c_int64 * 4) for name in ("grad_u_strides", "grad_delta_strides")),
        *((name, ctypes.c_int64 * 5) for name in ("grad_B_strides", "grad_C_strides")),
        *((name, ctypes.c_int32) for name in ("is_double", "softplus", "exact", "threads")),
        ("parallel", ctypes.c_void_p),
    ]


def why_unavailable() -> str | None:
    """Why the native code cannot be used on this machine, or None."""
    path = _library_path("baseline")
    if not path.exists():
        return f"it was not built, most likely for want of a C++ compiler at installation. {_REBUILD}"
    try:
        library()
    except (OSError, AttributeError) as error:  # AttributeError: an old library without one of the functions
        return f"{path.name} cannot be loaded ({error}). {_REBUILD}"
    return None


@functools.cache
def library() -> ctypes.CDLL:
    """The library for the best instruction set of this machine."""
    return load_library(instruction_sets()[0])


def instruction_sets() -> list[str]:
    """Names of the instruction sets that this machine has and that there is a library for, best first."""
    baseline = load_library("baseline")
    return [
        name
        for name in INSTRUCTION_SETS
        if name == "baseline" or (_library_path(name).exists() and getattr(baseline, f"mamba_mis_machine_has_{name}")())
    ]


@functools.cache
def load_library(instruction_set: str) -> ctypes.CDLL:
    """The library for an instruction set, which the machine must have."""
    loaded = ctypes.CDLL(str(_library_path(instruction_set)))
    for name in ("mamba_mis_problem_size", "mamba_mis_tile"):
        getattr(loaded, name).restype = ctypes.c_int64
    for name in ("mamba_mis_scan_forward", "mamba_mis_scan_backward"):
        getattr(loaded, name).argtypes = [ctypes.POINTER(_Problem)]
        getattr(loaded, name).restype = ctypes.c_int32
    if loaded.mamba_mis_problem_size() != ctypes.sizeof(_Problem):
        raise OSError("it was built from another version: reinstall nnunet-mamba-mis")
    return loaded


def _library_path(instruction_set: str) -> Path:
    return Path(__file__).with_name(f"_scan_{instruction_set}.so")


@functools.cache
def _openmp_parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch runs its own threads with, where that is known."""
    for path in Path(torch.__file__).parent.joinpath("lib").glob("lib*omp*.so*"):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


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
    D, delta_bias = (t if t is None else t.to(dtype) for t in (D, delta_bias))
    # without a group axis, there is one group; without a second axis of positions, one row of them
    B, C = (t.unsqueeze(1) if t.dim() == u.dim() else t for t in (B, C))
    if u.dim() == 3:
        x, delta, B, C = (t.unsqueeze(-2) for t in (x, delta, B, C))
    keep_starts = torch.is_grad_enabled()
    y, last_state, _ = native_scan(
        x, delta, A, B, C, D, delta_bias, delta_softplus, discretization == "zoh", keep_starts
    )
    y = y if u.dim() == 4 else y.squeeze(-2)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, last_state) if return_last_state else y


@torch.library.custom_op("nnunet_mamba_mis::native_scan", mutates_args=(), device_types="cpu")
def native_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
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
        delta_bias: (D,).
        softplus: Whether delta goes through softplus after the bias.
        exact: Zero-order hold; otherwise Δ stands for (e^{ΔA} − 1)/A.
        keep_starts: Whether states at tile starts are wanted, as backward does.
    """
    y, last_state, starts = _empty_outputs(u, A, keep_starts)
    problem, keep = _problem(u, delta, A, B, C, D, delta_bias, softplus, exact)
    _set(problem, "y", y)
    problem.last_state = last_state.data_ptr()
    problem.starts = starts.data_ptr() if keep_starts else None
    _run("forward", problem)
    del keep
    return y, last_state, starts


@native_scan.register_fake
def _(u, delta, A, B, C, D, delta_bias, softplus, exact, keep_starts):
    return _empty_outputs(u, A, keep_starts)


def _empty_outputs(u: Tensor, A: Tensor, keep_starts: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = u.shape
    tiles = -(-height * width // library().mamba_mis_tile()) if keep_starts else 0
    states = A.shape[1]
    return torch.empty_like(u), u.new_empty(batch, channels, states), u.new_empty(batch, tiles, channels, states)


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
    delta_bias: Tensor | None,
    starts: Tensor,
    softplus: bool,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `native_scan` with respect to u, delta, A, B, C, D and delta_bias (the last two empty if absent)."""
    grads = _empty_gradients(u, delta, A, B, C, D, delta_bias)
    problem, keep = _problem(u, delta, A, B, C, D, delta_bias, softplus, exact)
    problem.starts = starts.data_ptr()
    _set(problem, "grad_y", grad_y)
    last = grad_last_state.contiguous()
    problem.grad_last_state = last.data_ptr()
    for name, grad in zip(("u", "delta", "A", "B", "C", "D", "delta_bias"), grads, strict=True):
        if name in ("u", "delta", "B", "C"):
            _set(problem, f"grad_{name}", grad)
        else:
            setattr(problem, f"grad_{name}", grad.data_ptr() if grad.numel() else None)
    _run("backward", problem)
    del keep, last
    return grads


@native_scan_backward.register_fake
def _(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, starts, softplus, exact):
    return _empty_gradients(u, delta, A, B, C, D, delta_bias)


def _empty_gradients(u, delta, A, B, C, D, delta_bias):
    # strides as the arguments have them, but A, D and delta_bias contiguous
    by_channel = (u.new_empty(0 if t is None else t.shape) for t in (D, delta_bias))
    grad_u, grad_delta, grad_B, grad_C = (torch.empty_like(t) for t in (u, delta, B, C))
    return grad_u, grad_delta, u.new_empty(A.shape), grad_B, grad_C, *by_channel


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.softplus, ctx.exact, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _autograd(ctx, grad_y, grad_last_state, _grad_starts):
    *arguments, starts = ctx.saved_tensors
    if starts.numel() == 0:
        raise RuntimeError("the scan was run without keep_starts, so it has no gradient")
    grads = native_scan_backward(grad_y, grad_last_state, *arguments, starts, ctx.softplus, ctx.exact)
    present = (grad if argument is not None else None for grad, argument in zip(grads, arguments, strict=True))
    return *present, None, None, None


native_scan.register_autograd(_autograd, setup_context=_setup_context)


def _problem(u, delta, A, B, C, D, delta_bias, softplus: bool, exact: bool) -> tuple[_Problem, list[Tensor]]:
    """The inputs for the native code, and the tensors that must live until it has run."""
    batch, channels, height, width = u.shape
    problem = _Problem(
        batch=batch,
        channels=channels,
        groups=B.shape[1],
        states=A.shape[1],
        outer=height,
        inner=width,
        is_double=u.dtype == torch.float64,
        softplus=softplus,
        exact=exact,
        threads=torch.get_num_threads(),
        parallel=_openmp_parallel(),
    )
    for name, tensor in {"u": u, "delta": delta, "B": B, "C": C}.items():
        _set(problem, name, tensor)
    keep = []
    for name, tensor in {"A": A, "D": D, "delta_bias": delta_bias}.items():
        if tensor is not None:
            keep.append(tensor.contiguous())
            setattr(problem, name, keep[-1].data_ptr())
    return problem, keep


def _run(direction: str, problem: _Problem) -> None:
    if getattr(library(), f"mamba_mis_scan_{direction}")(problem) != 0:
        raise MemoryError(f"not enough memory for the {direction} scan of {problem.outer * problem.inner} positions")


def _set(problem: _Problem, name: str, tensor: Tensor) -> None:
    setattr(problem, name, tensor.data_ptr())
    setattr(problem, f"{name}_strides", type(getattr(problem, f"{name}_strides"))(*tensor.stride()))

"""Native code for CPUs (csrc/), loaded with ctypes: independent of torch's headers and version."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from nnunet_mamba_mis.ops.native_structs import STRUCTS, Threads
from nnunet_mamba_mis.ops.tracing import constant_when_traced
from nnunet_mamba_mis.ops.transforms import transformed
from nnunet_mamba_mis.utils.errors import UserError

_REBUILD = (
    "Install a compiler (Debian, Ubuntu: apt install g++), then, in the folder of the source: "
    "pip install --force-reinstall --no-deps ."
)
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")  # best first
VARIABLE = "MAMBA_MIS_INSTRUCTION_SET"
_WINDOWS = os.name == "nt"


def threads() -> Threads:
    """Return as many threads as torch uses: torch's threads if its OpenMP runtime is found, otherwise our own."""
    return Threads(torch.get_num_threads(), _openmp_parallel())


def run(function: str, problem: ctypes.Structure) -> None:
    """Call `mamba_mis_<function>` with a problem.

    Raises:
        MemoryError: Allocating scratch memory fails.
    """
    run_at(function, ctypes.addressof(problem))


def run_at(function: str, address: int) -> None:
    """Call `mamba_mis_<function>` with the address of a problem (see `run`)."""
    if getattr(library(), f"mamba_mis_{function}")(ctypes.c_void_p(address)) != 0:
        raise MemoryError(f"not enough memory for {function.replace('_', ' ')}")


@functools.cache
def why_unavailable() -> str | None:
    """Return why the native code cannot be used on this machine, or None."""
    path = _library_path("baseline")
    if not path.exists():
        return f"it was not built, most likely because installation found no C++ compiler. {_REBUILD}"
    try:
        library()
    except UserError as error:
        return str(error)
    except (OSError, AttributeError) as error:  # AttributeError: an old library lacks a function
        return f"{path.name} cannot be loaded ({error}). {_REBUILD}"
    return None


@constant_when_traced  # loading a library cannot be traced
def available() -> bool:
    """Return whether the native code can be used on this machine."""
    return why_unavailable() is None


def takes(tensors: Sequence[Tensor]) -> bool:
    """Return whether native code supports these tensors (batch, H, W, channels): on a CPU, of one type, no autocast."""
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and available()
        and all(
            t.dim() == 4
            and t.numel() > 0
            and t.dtype == first.dtype
            and t.device == first.device
            and t.layout is torch.strided
            for t in tensors
        )
    )


def needs_operator(*tensors: Tensor) -> bool:
    """Return whether torch must see an operation: to differentiate, transform or trace it, or for special tensors."""
    return torch.is_grad_enabled() or is_watched(*tensors)


def is_watched(*tensors: Tensor) -> bool:
    """Return whether torch must see each operation for a reason other than first derivatives, such as tracing."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or transformed()
        or _get_current_dispatch_mode() is not None
        or torch._C._len_torch_function_stack() > 0
        or any(type(t) not in (Tensor, nn.Parameter) or t.is_neg() or t._is_zerotensor() for t in tensors)
    )


@functools.cache
def library() -> ctypes.CDLL:
    """Return the library for `instruction_set()`."""
    return load_library(instruction_set())


def instruction_set() -> str:
    """Return the instruction set that native code uses: the machine's best, unless the environment names another.

    Raises:
        UserError: The environment names an instruction set that is unknown, that this machine lacks or that has no
            library.
    """
    usable = instruction_sets()
    name = os.environ.get(VARIABLE) or usable[0]
    if name not in usable:
        raise UserError(f"{VARIABLE}={name!r:.60}: unset it, or set it to one of {', '.join(usable)}")
    return name


def instruction_sets() -> list[str]:
    """Return the names of this machine's instruction sets for which a library exists, best first."""
    return [name for name in machine_instruction_sets() if _library_path(name).exists()]


def machine_instruction_sets() -> list[str]:
    """Return the names of this machine's instruction sets, best first."""
    baseline = load_library("baseline")
    return [
        name for name in INSTRUCTION_SETS if name == "baseline" or getattr(baseline, f"mamba_mis_machine_has_{name}")()
    ]


@functools.cache
def load_library(instruction_set: str) -> ctypes.CDLL:
    """Load the library for an instruction set, which the machine must have."""
    loaded = ctypes.CDLL(str(_library_path(instruction_set)))
    for struct in STRUCTS:
        if getattr(loaded, f"mamba_mis_sizeof_{struct.__name__}")() != ctypes.sizeof(struct):
            raise OSError(f"it was built from another version of the source: its {struct.__name__} has another size")
    loaded.mamba_mis_spectrum_size.restype = ctypes.c_int64
    return loaded


def _library_path(instruction_set: str) -> Path:
    return Path(__file__).with_name(f"_native_{instruction_set}{'.dll' if _WINDOWS else '.so'}")


@functools.cache
def _openmp_parallel() -> int | None:
    """Return the address of the GOMP_parallel that torch calls, or None.

    GNU's, LLVM's and Intel's OpenMP runtimes have this function. A process often has other OpenMP runtimes too, such as
    scikit-learn's, with their own threads.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    # the linker's search order for torch: global symbols first, then those of torch's dependencies
    for name in (None, str(library)):
        try:
            found = ctypes.CDLL(name, os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(found, ctypes.c_void_p).value
    return None

"""The selective scan on GPUs, by the kernels of `triton_kernels`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.allocation import empty_gradients, empty_outputs
from nnunet_mamba_mis.ops.selective_scan.operator import OperatorBackend, Tensors
from nnunet_mamba_mis.ops.selective_scan.self_test import why_wrong
from nnunet_mamba_mis.ops.tracing import constant_when_traced

BLOCK = 8  # positions between two states that are kept for backward
_WARP = 32
_STATE_AXIS = 2  # axis of states in B and C
# channels per program, or 1 for groups of one channel; a number that varied with a network's widths would need more
# kernels
_CHANNELS = 8
_WIDTH = 4  # states of a tile, which a lane loads at once
_TILES_IN_REGISTERS = 8  # tiles that fit in the registers of a lane
_WIDTH_OF_GRADIENTS = 2  # counterpart of _WIDTH in the kernel `gradients`
_PROGRAMS_OF_MULTIPROCESSOR = 12  # programs for which a multiprocessor's registers suffice
_MOST_POSITIONS = 2**31 - 2**16  # positions past the end, in idle lanes, must fit in 32 bits too
_CHUNKS_TOGETHER = 64  # chunks per step of the scan over chunks


class TritonBackend(OperatorBackend):
    """Backend "triton"."""

    name = "triton"
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    one_dtype = False

    def device(self) -> str:
        """Implement `Backend.device`."""
        return "cpu" if self.is_emulated() else "cuda"

    def is_emulated(self) -> bool:
        """Return whether kernels run in Triton's interpreter, on CPU tensors: slow, and meant for tests."""
        return os.environ.get("TRITON_INTERPRET") == "1"

    def why_unavailable(self) -> str | None:
        """Implement `Backend.why_unavailable`."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (it comes with torch's CUDA builds)"
        if not self.is_emulated() and not torch.cuda.is_available():
            return "no usable CUDA device was found"
        try:
            _kernels()
        except Exception as error:  # old versions of Triton fail in many ways
            return f"this version of Triton cannot load the kernels ({type(error).__name__}: {error})"
        return None

    def why_unsuitable(self, u: Tensor, discretization: str) -> str | None:
        """Implement `Backend.why_unsuitable`; check a small scan before the first scan on a GPU."""
        if u.dtype == torch.float64:
            return "it does not support float64"
        if u.dim() > 2 and u.shape[2:].numel() > _MOST_POSITIONS:
            return f"it supports at most {_MOST_POSITIONS} positions"
        return None if self.is_emulated() else _why_wrong(u.device)

    def block(self) -> int:
        """Implement `OperatorBackend.block`."""
        return BLOCK

    def forward(self, inputs: Tensors, softplus: bool, exact: bool, keep_starts: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Implement `OperatorBackend.forward`."""
        problem = _Problem(inputs, softplus, exact)
        u = inputs["u"]
        y, last_state, starts = empty_outputs(u, inputs["A"], BLOCK if keep_starts else None)
        summed = y if problem.slices == 1 else torch.empty_like(y, dtype=torch.float32)
        with torch.cuda.device_of(u):
            problem.walk(None, starts if keep_starts else None, y=summed, last_state=last_state)
            if summed is not y:
                y.copy_(summed)
        return y, last_state, starts

    def backward(
        self, inputs: Tensors, starts: Tensor, grad_y: Tensor, grad_last_state: Tensor, softplus: bool, exact: bool
    ) -> list[Tensor]:
        """Implement `OperatorBackend.backward`."""
        if grad_y.data_ptr() % 16:
            grad_y = grad_y.clone()  # Triton would compile its kernels again for an unaligned tensor
        problem = _Problem(inputs, softplus, exact)
        grads = dict(zip(inputs, empty_gradients(inputs.values(), grad_y), strict=True))
        parts = problem.parts()
        # sums over channels are kept for each part, sums over positions for every K blocks
        by_part = {name: _for_parts(grads[name], parts, problem.tiles) for name in ("B", "C")}
        together = -(-problem.blocks // problem.K)
        by_blocks = {
            name: starts.new_empty(problem.batch, together, *grads[name].shape)
            for name in ("A", "D", "delta_bias")
            if inputs[name] is not None
        }
        written: dict[str, Any] = {name: grads[name] for name in ("u", "delta", "z") if inputs[name] is not None}
        written |= {name: tensor[0] for name, tensor in by_part.items()}
        written |= {name: tensor.flatten() for name, tensor in by_blocks.items()}
        gradients: dict[str, Any] = {f"grad_{name}": written.get(name) for name in inputs}
        ends = torch.empty_like(starts)
        with torch.cuda.device_of(grad_y):
            problem.walk(grad_last_state.contiguous(), ends, BACKWARD=True, u=grad_y, B=problem.tensors["C"])
            problem.launch(
                "gradients",
                problem.rows * parts * together,
                grad_y=grad_y,
                starts=starts,
                ends=ends,
                parts=parts,
                WIDTH=_WIDTH_OF_GRADIENTS,
                tiles_of_part=-(-problem.tiles // parts),
                SEVERAL_TILES=problem.tiles > 1,
                INSIDE=problem.columns % BLOCK == 0 or problem.columns == problem.length,
                part_size=grads["B"].numel(),
                **gradients,
            )
            for name, tensor in by_part.items():
                if tensor.data_ptr() != grads[name].data_ptr():
                    grads[name].copy_(tensor.sum(0))
            for name, tensor in by_blocks.items():
                grads[name].copy_(tensor.sum((0, 1)))
        return list(grads.values())


class _Problem:
    """A scan and its division into programs of one warp, each with P channels of one group and K chunks."""

    def __init__(self, inputs: Tensors, softplus: bool, exact: bool) -> None:
        u, groups = inputs["u"], inputs["B"].shape[1]
        # copies of tensors with one or two axes are small
        self.tensors = {name: t.contiguous() if t is not None and t.dim() < 3 else t for name, t in inputs.items()}
        self.batch, self.channels, height, self.columns = u.shape
        self.device = u.device
        self.states = inputs["A"].shape[1]
        self.rows = self.batch * groups  # sequences of B and C
        self.length = height * self.columns
        self.blocks = -(-self.length // BLOCK)
        self.per_group = self.channels // groups
        P = 1 if self.per_group == 1 and self.length > 1 else _CHANNELS
        self.K = _WARP // P
        self.tiles = -(-self.per_group // P)
        tiles_of_states = -(-self.states // _WIDTH)
        self.slices = -(-tiles_of_states // _TILES_IN_REGISTERS)
        sizes = (self.channels, groups, self.length, self.columns, self.tiles)
        self.sizes = _kernels().Sizes(*map(_kernels().encoded, sizes))
        self.constants = {
            "SOFTPLUS": softplus,
            "EXACT": exact,
            "BLOCK": BLOCK,
            "SLICES": self.slices,
            "STATES": self.states,
            "TILES": min(tiles_of_states, _TILES_IN_REGISTERS),
            "WIDTH": _WIDTH,
            "P": P,
            "K": self.K,
        }

    def parts(self) -> int:
        """Return the number of parts into which backward divides a group's tiles to fill the GPU.

        Each part has its own sums of the gradients of B and C. The sums of all parts together need no more memory than
        the kept states.
        """
        within_memory = self.per_group // (2 * BLOCK)
        to_fill_gpu = -(-_programs(self.device) * self.K // (self.rows * self.blocks))
        parts = max(1, min(self.tiles, within_memory, to_fill_gpu))
        # leave no part without a tile: four tiles in three parts would be 2 + 2 + 0
        return -(-self.tiles // -(-self.tiles // parts))

    def walk(self, start: Tensor | None, kept: Tensor | None, **arguments: Any) -> None:
        """Walk over all chunks, from zero or `start`, and store the state before each block in `kept`.

        Args:
            start: State before the first position in walking direction, (batch, D, N).
            kept: Flat tensor of (batch, blocks, D, N) values.
            arguments: Further arguments of the kernel `walk`.
        """
        positions = -(-self.length * self.rows * self.tiles // (self.K * _programs(self.device)))
        chunk = BLOCK * max(2, -(-positions // BLOCK))
        chunks = -(-self.length // chunk)
        programs = self.rows * self.tiles * -(-chunks // self.K)
        given: dict[str, Any] = {
            "chunks": chunks,
            "chunk": chunk,
            "BACKWARD": False,
            "y": None,
            "last_state": None,
        } | arguments
        entering = None
        if chunks > 1:
            sums = torch.empty(self.batch * chunks * self.channels, dtype=torch.float32, device=self.device)
            entering = sums.new_empty(sums.numel() * self.states)
            added = given | {"y": None, "last_state": None}
            self.launch("walk", programs, **added, start=None, entering=None, added=entering, sums=sums, kept=None)
            columns = -(-self.states * self.channels // _WARP)
            tile = min(_CHUNKS_TOGETHER, _power_of_two(chunks))
            self.launch(
                "carry",
                self.batch * columns,
                start=start,
                added=entering,
                sums=sums,
                chunks=chunks,
                TILE=tile,
                COLUMNS=_WARP,
                num_warps=max(1, tile // 8),
            )
        self.launch("walk", programs, **given, start=start, entering=entering, added=None, sums=None, kept=kept)

    def launch(self, name: str, programs: int, *, num_warps: int = 1, **arguments: Any) -> None:
        """Run a kernel; omitted arguments default to the scan's own tensors."""
        kernel = getattr(_kernels(), name)
        given = self.tensors | self.constants | {"sizes": self.sizes} | arguments
        # with one row, or contiguous rows, kernels need no division to find a position
        flags = {"ROWS": False, "PACKED": True}
        values = {}
        for key in kernel.arg_names:
            value = given.get(key)
            if isinstance(value, Tensor) and value.dim() > 3:
                layout = _layout(value.shape, value.stride(), value.element_size())
                flags["ROWS"] |= not layout.is_one_row
                flags["PACKED"] &= layout.is_packed and value.data_ptr() % layout.alignment == 0
                value = layout.kind(value, *layout.strides)
            values[key] = value
        values |= {key: flag for key, flag in flags.items() if key in values}
        # fuse multiplications and additions regardless of Triton's default
        kernel[(programs,)](**values, num_warps=num_warps, enable_fp_fusion=True)


@constant_when_traced  # the self-test's scan is not part of the traced code
def _why_wrong(device: torch.device) -> str | None:
    if torch.cuda.is_current_stream_capturing():
        return None  # no other work can run during capture
    return _self_test(device)


@functools.cache
def _self_test(device: torch.device) -> str | None:
    return why_wrong(TritonBackend(), device)


@functools.cache
def _kernels() -> Any:
    if os.environ.get("TRITON_INTERPRET") == "1":
        _let_scalars_bound_loops()
    return importlib.import_module("nnunet_mamba_mis.ops.selective_scan.triton_kernels")


@functools.cache
def _let_scalars_bound_loops() -> None:
    """Let Triton 3.6's interpreter loop up to a scalar: NumPy ≥ 2.4 does not convert a one-value array to int."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: type, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor


@functools.cache
def _programs(device: torch.device) -> int:
    """Return the number of programs that fill a GPU."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return _PROGRAMS_OF_MULTIPROCESSOR * multiprocessors


def _power_of_two(value: int) -> int:
    """Return the smallest power of two that is at least a positive value."""
    return 1 << (value - 1).bit_length()


class _Layout(NamedTuple):
    """The layout of a tensor over positions, as kernels need it."""

    kind: type  # `Sequence` or `Grouped`
    strides: tuple[int, ...]  # encoded
    is_one_row: bool  # one row, or contiguous rows
    is_packed: bool  # channels, or groups of `_WIDTH` states, are adjacent in memory
    alignment: int  # bytes to which data must be aligned to count as packed


@functools.lru_cache(4096)  # a network has one layout per scan, and computing it takes longer than a launch
def _layout(shape: torch.Size, strides: tuple[int, ...], itemsize: int) -> _Layout:
    is_one_row = shape[-2] == 1 or strides[-2] == shape[-1] * strides[-1]
    encoded = tuple(map(_kernels().encoded, strides))
    if len(shape) == 4:
        is_packed = strides[1] == 1 or shape[1] == 1
        return _Layout(_kernels().Sequence, encoded, is_one_row, is_packed, 1)
    others = [strides[axis] for axis, size in enumerate(shape) if axis != _STATE_AXIS and size > 1]
    vectors = strides[_STATE_AXIS] == 1 and shape[_STATE_AXIS] % _WIDTH == 0
    is_packed = vectors and all(stride % _WIDTH == 0 for stride in others)
    return _Layout(_kernels().Grouped, encoded, is_one_row, is_packed, _WIDTH * itemsize)


def _for_parts(grad: Tensor, parts: int, tiles: int) -> Tensor:
    """Return a tensor (parts, *shape) for sums of B's or C's gradient; a view of `grad` if that loses no precision."""
    if parts == 1 and (tiles == 1 or grad.dtype == torch.float32):
        return grad.unsqueeze(0)
    strides = (grad.numel(), *grad.stride())
    return torch.empty_strided((parts, *grad.shape), strides, dtype=torch.float32, device=grad.device)

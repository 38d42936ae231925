"""Build programs for the native code (csrc/program.h): memory for every value, and structs for every operation.

Intermediate values live in two stretches of memory: one is kept for backward, the other is scratch memory of one pass.
Structs are built once for tensors of given shapes, as one block of bytes. Each call fills in the addresses.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.expressions import COLUMNS, LOAD, PART, Node, compute
from nnunet_mamba_mis.ops.native_layers import (
    PIXELWISE,
    DepthwiseConvolution,
    LayerKind,
    NativeLayer,
    ProjectedScan,
    Shape,
    UnfitError,
)
from nnunet_mamba_mis.ops.native_pixelwise import PARAMETERS, SILU, pixelwise_in_torch
from nnunet_mamba_mis.ops.native_structs import (
    ImageProblem,
    PixelLayer,
    PixelProblem,
    PixelTensor,
    Program,
    ProgramStep,
    ScanProblem,
)
from nnunet_mamba_mis.ops.pieces import Piece
from nnunet_mamba_mis.ops.pixelwise import PixelPlan, make_plan

_ALIGNMENT = 64  # of values in memory, in bytes

# Indices of the bases that addresses are relative to. From _FIRST on, the bases are the tensors, the parameters and, in
# backward, the gradients of both.
_BLOCK, _KEPT, _SCRATCH, _Y, _FIRST = range(5)  # _Y: the result; in backward, its gradient


class Place(NamedTuple):
    """Address and strides of a value (batch, H, W, channels), in elements."""

    base: int
    offset: int
    strides: tuple[int, ...]
    channels: int

    def part(self, begin: int, end: int) -> Place:
        """Return the place of a range of channels."""
        return self._replace(offset=self.offset + begin * self.strides[3], channels=end - begin)


class _Work(NamedTuple):
    """A piece in the form that the native code runs."""

    node: int
    sources: tuple[int, ...]
    plan: PixelPlan | None = None  # of a pixelwise piece
    kind: LayerKind | None = None  # of a layer
    layer: int = 0  # the layer's index among all layers
    columns: bool = False  # whether the layer works on the transposed image
    silu: PixelPlan | None = None  # of a SiLU that follows the layer
    shapes: tuple[tuple[int, ...], ...] = ()  # of the parameters
    first: int = 0  # index of the first parameter


class NativeProgram:
    """An expression, prepared for tensors of given shapes. Each call takes the tensors and parameters.

    Raises:
        UnfitError: The native code does not support the expression.
    """

    def __init__(
        self, nodes: Sequence[Node], pieces: Sequence[Piece], tensors: Sequence[Tensor], layers: list[NativeLayer]
    ) -> None:
        self.nodes = nodes
        self.like = tensors[0].new_empty(0)
        self.loaded = {i: what for i, (kind, _, what) in enumerate(nodes) if kind == LOAD}
        self.tensor_places = [Place(_FIRST + i, 0, t.stride(), t.shape[-1]) for i, t in enumerate(tensors)]
        self.shapes: dict[int, Shape] = {i: tuple(tensors[place].shape) for i, place in self.loaded.items()}
        self.root = pieces[-1].node
        self.work = self._in_order(pieces, layers)
        self._forward = {keep: ForwardPass(self, keep) for keep in (False, True)}
        self._backward = BackwardPass(self, self._forward[True])

    def parameters(self, layers: list[NativeLayer]) -> list[Tensor] | None:
        """Return all parameters in the order of `work`, or None if a layer has changed since the build."""
        found: list[Tensor] = []
        for work in self.work:
            plan = work.plan or work.silu
            if plan is not None:
                parameters = plan.parameters()
                if parameters is None:
                    return None
                found += parameters
            if work.kind is not None:
                layer = layers[work.layer]
                if layer.kind != work.kind:
                    return None
                found += layer.parameters
        return found if self.fits(found) else None

    def fits(self, parameters: list[Tensor]) -> bool:
        """Return whether parameters have the shapes, type and layout that the native code needs."""
        dtype, device = self.like.dtype, self.like.device
        for parameter, shape in zip(parameters, self.parameter_shapes, strict=True):
            if (
                parameter.shape != shape
                or parameter.dtype != dtype
                or parameter.device != device
                or not parameter.is_contiguous()
                or parameter.is_neg()
                or parameter._is_zerotensor()
            ):
                return False
        return True

    def forward(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor]:
        """Return the result, and further values that backward needs (empty unless `keep`)."""
        run = self._forward[keep]
        y = self.like.new_empty(self.shapes[self.root])
        kept, scratch = self.like.new_empty(run.kept.size), self.like.new_empty(run.scratch.size)
        run.block.run("program_forward", [0, *(t.data_ptr() for t in (kept, scratch, y, *tensors, *parameters))])
        return y, kept

    def backward(
        self, tensors: Sequence[Tensor], parameters: Sequence[Tensor], kept: Tensor, grad_y: Tensor
    ) -> list[Tensor]:
        """Return gradients of tensors and parameters."""
        run = self._backward
        grad_y = grad_y.contiguous()
        scratch = self.like.new_empty(run.scratch.size)
        grads = [t.new_zeros(t.shape) if i in run.to_zero else t.new_empty(t.shape) for i, t in enumerate(tensors)]
        grads += [torch.empty_like(p) for p in parameters]
        given = (kept, scratch, grad_y, *tensors, *parameters, *grads)
        run.block.run("program_backward", [0, *(t.data_ptr() for t in given)])
        return grads

    def in_torch(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """Compute the result by PyTorch operations that all transforms support."""
        values = {i: tensors[place] for i, place in self.loaded.items()}

        def value(i: int) -> Tensor:
            kind, sources, _ = self.nodes[i]
            return compute(self.nodes[i], [value(sources[0])]) if kind == PART else values[i]

        for work in self.work:
            taken, given = [value(i) for i in work.sources], parameters[work.first : work.first + len(work.shapes)]
            if work.plan is not None:
                values[work.node] = pixelwise_in_torch(taken, given, work.plan.kinds, work.plan.eps)
            elif work.kind is not None:
                taken = [x.transpose(1, 2) for x in taken] if work.columns else taken
                x = work.kind.in_torch(*taken, *given)
                x = torch.nn.functional.silu(x) if work.silu else x
                values[work.node] = x.transpose(1, 2) if work.columns else x
        return values[self.root]

    def _in_order(self, pieces: Sequence[Piece], layers: list[NativeLayer]) -> list[_Work]:
        works: list[_Work] = []
        given = iter(enumerate(layers))
        for piece in pieces:
            kind, _, what = self.nodes[piece.node]
            if kind == PART:
                self.shapes[piece.node] = (*self.shapes[piece.sources[0]][:3], what[1] - what[0])
            elif piece.steps is None:
                works.append(self._layer_work(piece, kind == COLUMNS, *next(given)))
            else:
                works.append(self._pixelwise_work(piece))
        works = self._with_silu(works)
        first = 0
        for i, work in enumerate(works):
            works[i] = work._replace(first=first)
            first += len(work.shapes)
        self.parameter_shapes = [shape for work in works for shape in work.shapes]
        return works

    def _pixelwise_work(self, piece: Piece) -> _Work:
        sources = [self.shapes[i] for i in piece.sources]
        plan = make_plan([shape[3] for shape in sources], piece.steps or ())
        if plan is None or any(shape[:3] != sources[0][:3] for shape in sources):
            raise UnfitError
        self.shapes[piece.node] = (*sources[0][:3], plan.widths[-1])
        return _Work(piece.node, piece.sources, plan, shapes=tuple(plan.shapes()))

    def _layer_work(self, piece: Piece, columns: bool, place: int, layer: NativeLayer) -> _Work:
        if columns and not isinstance(layer.kind, ProjectedScan):
            raise UnfitError
        self.shapes[piece.node] = layer.kind.result([self.shapes[i] for i in piece.sources], layer.parameters)
        shapes = tuple(tuple(p.shape) for p in layer.parameters)
        return _Work(piece.node, piece.sources, None, layer.kind, place, columns, None, shapes)

    @staticmethod
    def _with_silu(works: list[_Work]) -> list[_Work]:
        """Merge each SiLU into the depthwise convolution before it, if nothing else uses the convolution's result."""
        uses = Counter(i for work in works for i in work.sources)
        merged: dict[int, _Work] = {}
        for work in works:
            before = merged.get(work.sources[0])
            if (
                work.plan is not None
                and work.plan.kinds[1:] == [SILU]
                and before is not None
                and isinstance(before.kind, DepthwiseConvolution)
                and uses[before.node] == 1
            ):
                del merged[before.node]
                work = before._replace(node=work.node, silu=work.plan)
            merged[work.node] = work
        return list(merged.values())


def build(
    nodes: Sequence[Node], pieces: Sequence[Piece], tensors: Sequence[Tensor], layers: list[NativeLayer]
) -> NativeProgram | None:
    """Return a program, or None if the native code does not support the expression."""
    try:
        return NativeProgram(nodes, pieces, tensors, layers)
    except UnfitError:
        return None


class _Stretch:
    """A stretch of memory that grows with each allocation. Sizes are in elements."""

    def __init__(self, base: int, item: int) -> None:
        self.base = base
        self.size = 0
        self._step = _ALIGNMENT // item

    def take(self, count: int) -> tuple[int, int]:
        """Allocate elements, and return their base and offset."""
        start = self.size
        self.size += -(-count // self._step) * self._step
        return self.base, start

    def image(self, shape: Shape) -> Place:
        """Allocate contiguous features, and return their place."""
        return Place(*self.take(math.prod(shape)), _contiguous_strides(shape), shape[3])


class _Block:
    """Consecutive structs, and the positions of the addresses in them."""

    def __init__(self, item: int) -> None:
        self._bytes = bytearray()
        self._item = item
        self._addresses: list[tuple[int, int, int]] = []  # byte position in the block, base, byte offset
        self._words: tuple[np.ndarray, ...] | None = None

    def add(self, struct: ctypes.Structure | ctypes.Array, **addresses: tuple[int, int] | int | None) -> int:
        """Append a struct and return its position.

        Args:
            struct: The struct. Its size is a multiple of eight bytes.
            addresses: Values of the struct's fields: base and offset in elements, or the position of another struct.
        """
        position = len(self._bytes)
        self._bytes += bytes(struct)
        for field, address in addresses.items():
            if address is not None:
                self.point(position + getattr(type(struct), field).offset, address)
        return position

    def point(self, position: int, address: tuple[int, int] | int) -> None:
        """Record the address to fill in at a position."""
        base, offset = (_BLOCK, address) if isinstance(address, int) else (address[0], address[1] * self._item)
        self._addresses.append((position, base, offset))

    def run(self, function: str, bases: list[int]) -> None:
        """Fill in addresses and call a native function with the last struct."""
        if self._words is None:
            positions, kinds, offsets = (np.array(column) for column in zip(*self._addresses, strict=True))
            self._words = np.frombuffer(bytes(self._bytes), dtype=np.int64), positions // 8, kinds, offsets
        template, positions, kinds, offsets = self._words
        words = template.copy()
        bases[_BLOCK] = words.__array_interface__["data"][0]
        words[positions] = np.array(bases)[kinds] + offsets
        native.run_at(function, bases[_BLOCK] + 8 * len(words) - ctypes.sizeof(Program))


class _Pass:
    """One direction of a program: memory for its values, and its structs."""

    def __init__(self, program: NativeProgram) -> None:
        self.program = program
        item = program.like.element_size()
        self.kept, self.scratch = _Stretch(_KEPT, item), _Stretch(_SCRATCH, item)
        self.block = _Block(item)
        self.first_parameter = _FIRST + len(program.tensor_places)
        self.common = {"threads": native.threads(), "is_double": program.like.dtype == torch.float64}

    def result_or_its_gradient(self) -> Place:
        """Return the place of the result or, in backward, of its gradient."""
        shape = self.program.shapes[self.program.root]
        return Place(_Y, 0, _contiguous_strides(shape), shape[3])

    def parameters(self, work: _Work, *fields: str, shift: int = 0) -> dict[str, tuple[int, int]]:
        """Return addresses of a piece's parameters or, with `shift`, of their gradients."""
        first = self.first_parameter + shift + work.first
        return {field: (first + i, 0) for i, field in enumerate(fields[: len(work.shapes)])}

    def image_problem(self, work: _Work) -> ImageProblem:
        """Return a layer's struct, without its tensors."""
        batch, height, width, channels = self.program.shapes[work.sources[0]]
        _, y_height, y_width, _ = self.program.shapes[work.node]
        return ImageProblem(
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            y_height=y_height,
            y_width=y_width,
            silu=work.silu is not None,
            **self.common,
        )

    def image_layer(
        self, work: _Work, problem: ImageProblem, x: Sequence[Place], grad_x: Sequence[Place] = (), **addresses: Any
    ) -> int:
        """Append the struct of a layer on contiguous images, and return the struct's position."""
        position = self.block.add(problem, **addresses)
        for field, places in ((ImageProblem.x, x), (ImageProblem.grad_x, grad_x)):
            for i, (source, place) in enumerate(zip(work.sources, places, strict=False)):
                if place.strides != _contiguous_strides(self.program.shapes[source]):
                    raise UnfitError
                self.block.point(position + field.offset + i * ctypes.sizeof(ctypes.c_void_p), place[:2])
        return position

    def scan_problem(self, work: _Work) -> ScanProblem:
        """Return a scan's struct, without its tensors."""
        batch, height, width, channels = self.program.shapes[work.node]
        kind = work.kind
        return ScanProblem(
            batch=batch,
            channels=channels,
            groups=1,
            states=work.shapes[3][1],
            outer=width if work.columns else height,
            inner=height if work.columns else width,
            softplus=True,
            exact=isinstance(kind, ProjectedScan) and kind.discretization == "zoh",
            A_is_log=True,
            **self.common,
        )

    def pixel_tensors(self, places: Sequence[Place], add: Sequence[bool] = ()) -> int:
        """Append an array of structs that describe tensors, and return its position."""
        array = (PixelTensor * len(places))()
        for tensor, place, adds in zip(array, places, add or [False] * len(places), strict=True):
            tensor.channels, tensor.strides[:], tensor.add = place.channels, place.strides, adds
        position = self.block.add(array)
        for i, place in enumerate(places):
            self.block.point(position + i * ctypes.sizeof(PixelTensor), (place.base, place.offset))
        return position

    def pixel_layers(self, work: _Work, grads: int | None) -> int:
        """Append an array of structs that describe layers, and return its position.

        `grads` is the index shift from parameters to their gradients, or None in forward.
        """
        assert work.plan is not None
        plan = work.plan
        array = (PixelLayer * len(plan.kinds))()
        for layer, kind, channels, eps in zip(array, plan.kinds, plan.widths, plan.eps, strict=True):
            layer.kind, layer.channels, layer.eps = kind, channels, eps
        position = self.block.add(array)
        parameter = self.first_parameter + work.first
        for i, kind in enumerate(plan.kinds):
            for name in PARAMETERS.get(kind, ()):
                at = position + i * ctypes.sizeof(PixelLayer)
                self.block.point(at + getattr(PixelLayer, name).offset, (parameter, 0))
                if grads is not None:
                    self.block.point(at + getattr(PixelLayer, f"grad_{name}").offset, (parameter + grads, 0))
                parameter += 1
        return position

    def pixel_problem(self, work: _Work, y: Place, tensors: int, grad: int | None, layers: int) -> int:
        """Append a pixelwise problem and return its position."""
        assert work.plan is not None
        batch, height, width, _ = self.program.shapes[work.node]
        struct = PixelProblem(batch=batch, height=height, width=width, layers=len(work.plan.kinds), **self.common)
        struct.y.channels, struct.y.strides[:] = y.channels, y.strides
        position = self.block.add(struct, tensor=tensors, grad=grad, layer=layers)
        self.block.point(position + PixelProblem.y.offset, (y.base, y.offset))
        return position

    def finish(self, steps: list[tuple[int, int]]) -> None:
        """Append the program, given the kind and position of each problem."""
        array = (ProgramStep * len(steps))()
        for step, (kind, _) in zip(array, steps, strict=True):
            step.kind = kind
        position = self.block.add(array)
        for i, (_, problem) in enumerate(steps):
            at = position + i * ctypes.sizeof(ProgramStep)
            self.block.point(at + ProgramStep.problem.offset, problem)
        self.block.add(Program(native.threads(), len(steps)), steps=position)


class ForwardPass(_Pass):
    """The forward pass. With `keep`, it saves the values that backward needs."""

    def __init__(self, program: NativeProgram, keep: bool) -> None:
        super().__init__(program)
        self.stretch = self.kept if keep else self.scratch
        self.keep = keep
        self.places = {i: program.tensor_places[place] for i, place in program.loaded.items()}
        self.extra: dict[int, tuple[int, int]] = {}  # by node: values kept besides inputs, such as block-start states
        taken = {i for work in program.work if work.kind is None or work.kind.keeps_inputs for i in work.sources}
        for work in program.work:
            if work.node == program.root:
                self.places[work.node] = self.result_or_its_gradient()
            else:
                memory = self.stretch if work.node in taken else self.scratch
                self.places[work.node] = memory.image(program.shapes[work.node])
        self.finish([self._step(work) for work in program.work])

    def place(self, i: int) -> Place:
        """Return the place of a node's value."""
        kind, sources, what = self.program.nodes[i]
        return self.place(sources[0]).part(*what) if kind == PART else self.places[i]

    def _step(self, work: _Work) -> tuple[int, int]:
        sources, y = [self.place(i) for i in work.sources], self.places[work.node]
        if work.kind is None:
            layers = self.pixel_layers(work, None)
            return PIXELWISE, self.pixel_problem(work, y, self.pixel_tensors(sources), None, layers)
        if isinstance(work.kind, ProjectedScan):
            return work.kind.step, self._scan(work, sources[0], y)
        problem = self.image_problem(work)
        count = work.kind.kept(problem) if self.keep else 0
        if count:
            self.extra[work.node] = self.kept.take(count)
        addresses = {"y": y[:2], "kept": self.extra.get(work.node), **self.parameters(work, "weight", "bias")}
        return work.kind.step, self.image_layer(work, problem, sources, **addresses)

    def _scan(self, work: _Work, u: Place, y: Place) -> int:
        problem = self.scan_problem(work)
        _set_strides(problem, "u", u, work.columns)
        _set_strides(problem, "y", y, work.columns)
        states = problem.batch * problem.channels * problem.states
        if self.keep:
            tiles = -(-problem.outer * problem.inner // native.library().mamba_mis_tile())
            self.extra[work.node] = self.kept.take(tiles * states)
        return self.block.add(
            problem,
            u=u[:2],
            y=y[:2],
            starts=self.extra.get(work.node),
            last_state=self.scratch.take(states),
            **self.parameters(work, "weight", "delta_bias", "weight_bc", "A", "D"),
        )


class BackwardPass(_Pass):
    """The backward pass. Gradients of values with several uses are summed in place."""

    def __init__(self, program: NativeProgram, forward: ForwardPass) -> None:
        super().__init__(program)
        self.forward = forward
        self.to_zero: set[int] = set()  # tensors whose gradients start as zeros
        self._reached: set[int] = set()  # values whose gradients already hold a term
        self._shift = len(program.tensor_places) + len(program.parameter_shapes)
        self._places = {program.root: self.result_or_its_gradient()}
        for i, place in program.loaded.items():
            shape = program.shapes[i]
            self._places[i] = Place(_FIRST + self._shift + place, 0, _contiguous_strides(shape), shape[3])
        for work in program.work:
            if work.node not in self._places:
                self._places[work.node] = self.scratch.image(program.shapes[work.node])
        # the native code runs the steps from the last to the first
        self.finish([self._step(work) for work in reversed(program.work)][::-1])

    def _gradient(self, i: int) -> tuple[Place, bool]:
        """Return the place of a value's gradient, and whether to add to it."""
        kind, sources, what = self.program.nodes[i]
        whole = sources[0] if kind == PART else i
        adds = whole in self._reached
        self._reached.add(whole)
        if kind != PART:
            return self._places[whole], adds
        if not adds:
            if whole not in self.program.loaded:
                raise UnfitError
            self.to_zero.add(self.program.loaded[whole])
        return self._places[whole].part(*what), True

    def _step(self, work: _Work) -> tuple[int, int]:
        sources, grad_y = [self.forward.place(i) for i in work.sources], self._places[work.node]
        # from the last source to the first, as in the native code
        grads = [self._gradient(i) for i in reversed(work.sources)][::-1]
        places, adds = [place for place, _ in grads], [adds for _, adds in grads]
        if work.kind is None:
            tensors, grad = self.pixel_tensors(sources), self.pixel_tensors(places, adds)
            layers = self.pixel_layers(work, self._shift)
            return PIXELWISE, self.pixel_problem(work, grad_y, tensors, grad, layers)
        if isinstance(work.kind, ProjectedScan):
            return work.kind.step, self._scan(work, sources[0], grad_y, places[0], adds[0])
        if any(adds) and not work.kind.adds:
            raise UnfitError
        problem = self.image_problem(work)
        problem.add[: len(adds)] = adds
        addresses = {
            "kept": self.forward.extra.get(work.node),
            "grad_y": grad_y[:2],
            **self.parameters(work, "weight", "bias"),
            **self.parameters(work, "grad_weight", "grad_bias", shift=self._shift),
        }
        return work.kind.step, self.image_layer(work, problem, sources, places, **addresses)

    def _scan(self, work: _Work, u: Place, grad_y: Place, grad_u: Place, adds: bool) -> int:
        problem = self.scan_problem(work)
        problem.add_grad_u = adds
        for name, place in (("u", u), ("grad_y", grad_y), ("grad_u", grad_u)):
            _set_strides(problem, name, place, work.columns)
        fields = ("weight", "delta_bias", "weight_bc", "A", "D")
        return self.block.add(
            problem,
            u=u[:2],
            starts=self.forward.extra[work.node],
            grad_y=grad_y[:2],
            grad_u=grad_u[:2],
            **self.parameters(work, *fields),
            **self.parameters(work, *(f"grad_{field}" for field in fields), shift=self._shift),
        )


def _contiguous_strides(shape: Shape) -> tuple[int, ...]:
    _, height, width, channels = shape
    return height * width * channels, width * channels, channels, 1


def _set_strides(problem: ScanProblem, name: str, place: Place, columns: bool) -> None:
    batch, row, column, channel = place.strides
    outer, inner = (column, row) if columns else (row, column)
    getattr(problem, f"{name}_strides")[:] = (batch, channel, outer, inner)

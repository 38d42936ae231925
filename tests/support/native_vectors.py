"""Test cases for the native code, with results of float64 references, in a file for tests/programs/run_vectors.cpp.

A case is a memory image. The file consists of 64-bit integers, doubles, and texts preceded by their length:

    number of cases; for each case its name, then lists, each preceded by its length:
    segments       size, bytes
    addresses      segment and position of an address, segment and offset that it points to
    calls          function, segment with its struct
    expectations   name, segment, offset, count, whether doubles (else floats), relative tolerance, expected numbers

To add a kernel, change only this file: add a `Layer` if the kernel is a step of programs, otherwise a function like
`scan_case`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops import selective_scan_reference
from nnunet_mamba_mis.ops.image_layers import Resize, attend, channel_summary, pixel_summary
from nnunet_mamba_mis.ops.native_layers import (
    DEPTHWISE,
    GATE,
    PIXELWISE,
    SCAN,
    DepthwiseConvolution,
    LayerKind,
    SpatialConvolution,
    SpectralFilter,
)
from nnunet_mamba_mis.ops.native_pixelwise import (
    CONCAT,
    LINEAR,
    LOAD,
    NORM,
    PARAMETERS,
    PLUS,
    PROJECT,
    SILU,
    TIMES,
    pixelwise_in_torch,
)
from nnunet_mamba_mis.ops.native_structs import (
    ImageProblem,
    PixelLayer,
    PixelProblem,
    PixelTensor,
    Program,
    ProgramStep,
    ScanProblem,
    Threads,
)

TILE = 32  # kTile of csrc/scan.h
VARIANTS = ((torch.float32, 1), (torch.float32, 3), (torch.float64, 3))  # type, number of threads
# relative to the largest expected number, for sums of a few hundred products and the float32 kernels' exponential
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


class Address(NamedTuple):
    """A position in a case's memory."""

    segment: int
    offset: int = 0


class Case:
    """Memory, calls and expected results."""

    def __init__(self, name: str, dtype: torch.dtype, threads: int) -> None:
        self.name, self.dtype = f"{name} {str(dtype).removeprefix('torch.')} on {threads} threads", dtype
        self.common = {"is_double": dtype == torch.float64, "threads": Threads(threads)}
        self.segments: list[bytes] = []
        self.addresses: list[tuple[Address, Address]] = []
        self.calls: list[tuple[str, Address]] = []
        self.expectations: list[tuple[str, Address, Tensor]] = []

    def given(self, tensor: Tensor) -> Address:
        """Add a contiguous tensor, and return its address."""
        assert tensor.is_contiguous()
        return self._segment(tensor.detach().to(self.dtype).numpy().tobytes())

    def expected(self, name: str, tensor: Tensor, initial: float = float("nan")) -> Address:
        """Reserve memory for a contiguous tensor that the native code must fill in."""
        assert tensor.is_contiguous()
        address = self.given(torch.full_like(tensor, initial))
        self.expectations.append((name, address, tensor.detach()))
        return address

    def room(self, count: int) -> Address:
        """Reserve memory that only the native code writes and reads; its content is not compared."""
        return self.given(torch.full((count,), float("nan")))

    def struct(self, value: ctypes.Structure | ctypes.Array, **fields: Address | None) -> Address:
        """Add a struct with addresses in some of its fields, and return its address."""
        place = self._segment(bytes(value))
        for field, address in fields.items():
            self.point(place, getattr(type(value), field).offset, address)
        return place

    def point(self, place: Address, offset: int, to: Address | None) -> None:
        """Store the address `to` in memory at an offset from `place`."""
        if to is not None:
            self.addresses.append((Address(place.segment, place.offset + offset), to))

    def __bytes__(self) -> bytes:
        parts = [_text(self.name), _integers(len(self.segments))]
        for segment in self.segments:
            parts += [_integers(len(segment)), segment]
        parts.append(_integers(len(self.addresses)))
        parts += [_integers(*place, *to) for place, to in self.addresses]
        parts.append(_integers(len(self.calls)))
        parts += [_text(function) + _integers(problem.segment) for function, problem in self.calls]
        parts.append(_integers(len(self.expectations)))
        for name, address, tensor in self.expectations:
            is_double, tolerance = self.dtype == torch.float64, TOLERANCE[self.dtype]
            parts.append(_text(name) + _integers(*address, tensor.numel(), is_double) + struct.pack("<d", tolerance))
            parts.append(tensor.double().numpy().astype("<f8").tobytes())
        return b"".join(parts)

    def _segment(self, content: bytes) -> Address:
        self.segments.append(content)
        return Address(len(self.segments) - 1)


def _integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _text(value: str) -> bytes:
    return _integers(len(value.encode())) + value.encode()


def write_cases(path: Path) -> int:
    """Write the file and return the number of cases."""
    torch.manual_seed(0)
    cases = [bytes(case) for dtype, threads in VARIANTS for case in make_cases(dtype, threads)]
    path.write_bytes(_integers(len(cases)) + b"".join(cases))
    return len(cases)


def make_cases(dtype: torch.dtype, threads: int) -> Iterator[Case]:
    """Yield all cases for one type and number of threads."""
    yield scan_case("scan with all arguments", dtype, threads, exact=False, optional=True, groups=2)
    yield scan_case("scan by zero-order hold", dtype, threads, exact=True, optional=True, groups=1)
    yield scan_case("scan without options", dtype, threads, exact=True, optional=False, groups=3)
    if threads > 1:  # several threads share the sequence
        long = (1, 1, 33, 33)
        yield scan_case("long scan of one channel", dtype, threads, exact=True, optional=False, groups=1, size=long)
    size = (2, 7, 9)
    layers: dict[str, list[Layer]] = {
        "pixelwise layers": [PixelwiseLayer(size, 6)],
        "projected scan": [ScanLayer(6, exact=False)],
        "projected scan by zero-order hold": [ScanLayer(6, exact=True)],
        "depthwise convolution": [DepthwiseLayer(6, silu=False)],
        "depthwise convolution with SiLU": [DepthwiseLayer(6, silu=True)],
        "spectral gate": [GateLayer((7, 9), 6)],
        "spectral gate of even size": [GateLayer((8, 12), 2)],
    }
    for name, chain in layers.items():
        yield program_case(name, dtype, threads, chain, (2, 8, 12, 2) if "even" in name else (*size, 6))
    x, s, logits = (*size, 6), (*size, 1), (2 * size[0], 1, 1, 6)
    yield image_case("pooling", dtype, threads, Resize((3, 4)), [x])
    yield image_case("bilinear interpolation", dtype, threads, Resize((15, 20)), [x])
    yield image_case("channel summary", dtype, threads, channel_summary, [x])
    yield image_case("spatial convolution", dtype, threads, SpatialConvolution(), [(*size, 2)], [(1, 2, 7, 7)])
    kept = size[0] * (size[1] * size[2] + 6)
    yield image_case("pixel summary", dtype, threads, pixel_summary, [x, s], kept=kept)
    yield image_case("attention", dtype, threads, attend, [x, s, logits])
    every = [PixelwiseLayer(size, 6), ScanLayer(6, True), DepthwiseLayer(6, True), GateLayer((7, 9), 6)]
    yield program_case("program of all layers", dtype, threads, every, (*size, 6))


def _random(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """Return a float64 leaf tensor whose numbers `dtype` can represent exactly."""
    return (torch.randn(shape) * scale).to(dtype).double().requires_grad_()


def scan_case(
    name: str,
    dtype: torch.dtype,
    threads: int,
    *,
    exact: bool,
    optional: bool,
    groups: int,
    size: tuple[int, int, int, int] = (2, 6, 9, 11),
    states: int = 5,
) -> Case:
    """Make a scan with given Δ, B and C. Positions precede channels in memory, as in the network."""
    case = Case(name, dtype, threads)
    batch, channels, height, width = size
    shapes = {name: (batch, height, width, channels) for name in ("u", "delta", "z")}
    shapes |= dict.fromkeys("BC", (batch, height, width, groups, states))
    shapes |= {"A": (channels, states), "D": (channels,), "delta_bias": (channels,)}
    tensors = {
        name: _random(dtype, *shape)
        for name, shape in shapes.items()
        if optional or name not in ("D", "z", "delta_bias")
    }
    tensors["A"] = -tensors["A"].detach().abs().requires_grad_()
    if not optional:  # without softplus, Δ itself must be positive
        tensors["delta"] = tensors["delta"].detach().abs().requires_grad_()

    def positions_last(tensor: Tensor) -> Tensor:
        return tensor.flatten(1, 2).movedim(1, -1) if tensor.dim() > 2 else tensor

    arguments = {name: positions_last(tensor) for name, tensor in tensors.items()}
    y, last_state = selective_scan_reference(
        **arguments, delta_softplus=optional, return_last_state=True, discretization="zoh" if exact else "mamba"
    )
    grad_y, grad_last_state = _random(dtype, batch, height, width, channels), _random(dtype, *last_state.shape)
    objective = (y * positions_last(grad_y)).sum() + (last_state * grad_last_state).sum()
    grads = dict(zip(tensors, torch.autograd.grad(objective, list(tensors.values())), strict=True))

    problem = ScanProblem(
        batch=batch, channels=channels, groups=groups, states=states, outer=height, inner=width,
        softplus=optional, exact=exact, **case.common,
    )  # fmt: skip
    for field in ("u", "delta", "z", "y"):
        for prefix in ("", "grad_"):
            getattr(problem, f"{prefix}{field}_strides")[:] = (
                height * width * channels, 1, width * channels, channels,
            )  # fmt: skip
    for field in "BC":
        for prefix in ("", "grad_"):
            row = groups * states
            getattr(problem, f"{prefix}{field}_strides")[:] = (height * width * row, states, 1, width * row, row)
    fields = {name: case.given(tensor) for name, tensor in tensors.items()}
    fields |= {f"grad_{name}": case.expected(f"grad_{name}", grad.contiguous()) for name, grad in grads.items()}
    fields["y"] = case.expected("y", y.movedim(1, -1).contiguous())
    fields["last_state"] = case.expected("last_state", last_state)
    fields["starts"] = case.room(batch * -(-height * width // TILE) * channels * states)
    fields |= {"grad_y": case.given(grad_y), "grad_last_state": case.given(grad_last_state)}
    place = case.struct(problem, **fields)
    case.calls = [("scan_forward", place), ("scan_backward", place)]
    return case


class Places(NamedTuple):
    """Addresses of a layer's input and result, of its parameters, and of the gradients of all these."""

    x: Address
    y: Address
    grad_y: Address
    grad_x: Address
    parameters: list[Address]
    grads: list[Address]


class Layer:
    """One kind of layer, which is a step of a native program, and its reference in PyTorch."""

    kind: int
    shapes: list[tuple[int, ...]]  # of the parameters

    def reference(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Map (batch, H, W, channels) to the same shape."""
        raise NotImplementedError

    def structs(self, case: Case, size: Sequence[int], places: Places) -> tuple[Address, Address]:
        """Add the structs of the forward and backward problems, and return their addresses."""
        raise NotImplementedError


class DepthwiseLayer(Layer):
    """Depthwise convolution."""

    kind = DEPTHWISE

    def __init__(self, channels: int, silu: bool) -> None:
        self.silu = silu
        self.shapes = [(channels, 1, 3, 3), (channels,)]

    def reference(self, x: Tensor, *parameters: Tensor) -> Tensor:
        y = DepthwiseConvolution().in_torch(x, *parameters)
        return F.silu(y) if self.silu else y

    def structs(self, case: Case, size: Sequence[int], places: Places) -> tuple[Address, Address]:
        return (_image_problem(case, size, places, silu=self.silu),) * 2


class GateLayer(Layer):
    """Spectral gate."""

    kind = GATE

    def __init__(self, size: tuple[int, int], channels: int) -> None:
        self.filter = SpectralFilter(size)
        self.shapes = [(size[0], size[1] // 2 + 1, channels, 2)] * 2

    def reference(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return self.filter.in_torch(x, *parameters)

    def structs(self, case: Case, size: Sequence[int], places: Places) -> tuple[Address, Address]:
        batch, height, width, channels = size
        # enough for every instruction set: vectors have at most 16 lanes
        spectrum = case.room(4 * batch * height * ((width // 2 + 1) * channels + 2 * 16))
        return (_image_problem(case, size, places, kept=spectrum),) * 2


def _image_problem(
    case: Case, size: Sequence[int], places: Places, silu: bool = False, kept: Address | None = None
) -> Address:
    sizes = dict(zip(("batch", "height", "width", "channels"), size, strict=True))
    problem = ImageProblem(silu=silu, y_height=size[1], y_width=size[2], **sizes, **case.common)
    weight, bias = places.parameters
    grad_weight, grad_bias = places.grads
    # x and grad_x have room for three inputs; these layers have one
    return case.struct(
        problem, x=places.x, y=places.y, grad_y=places.grad_y, grad_x=places.grad_x, weight=weight, bias=bias,
        grad_weight=grad_weight, grad_bias=grad_bias, kept=kept,
    )  # fmt: skip


class ScanLayer(Layer):
    """Scan with projections, and with A = −e^{A_log}."""

    kind = SCAN
    states = 5

    def __init__(self, channels: int, exact: bool) -> None:
        self.exact = exact
        self.shapes = [
            (channels, channels),
            (channels,),
            (2 * self.states, channels),
            (channels, self.states),
            (channels,),
        ]

    def reference(self, x: Tensor, *parameters: Tensor) -> Tensor:
        weight, delta_bias, weight_bc, A_log, D = parameters
        u = x.flatten(1, 2)
        delta, (B, C) = F.linear(u, weight).mT, F.linear(u, weight_bc).mT.chunk(2, dim=1)
        discretization = "zoh" if self.exact else "mamba"
        y = selective_scan_reference(
            u.mT, delta, -A_log.exp(), B, C, D, None, delta_bias, True, discretization=discretization
        )
        assert isinstance(y, Tensor)
        return y.mT.reshape(x.shape)

    def structs(self, case: Case, size: Sequence[int], places: Places) -> tuple[Address, Address]:
        batch, height, width, channels = size
        problem = ScanProblem(
            batch=batch, channels=channels, groups=1, states=self.states, outer=height, inner=width,
            softplus=True, exact=self.exact, A_is_log=True, **case.common,
        )  # fmt: skip
        for field in ("u", "y", "grad_u", "grad_y"):
            getattr(problem, f"{field}_strides")[:] = (height * width * channels, 1, width * channels, channels)
        names = ("weight", "delta_bias", "weight_bc", "A", "D")
        grad_names = [f"grad_{name}" for name in names]
        place = case.struct(
            problem, u=places.x, y=places.y, grad_u=places.grad_x, grad_y=places.grad_y,
            last_state=case.room(batch * channels * self.states),
            starts=case.room(batch * -(-height * width // TILE) * channels * self.states),
            grad_last_state=case.given(torch.zeros(batch * channels * self.states)),
            **dict(zip(names, places.parameters, strict=True)), **dict(zip(grad_names, places.grads, strict=True)),
        )  # fmt: skip
        return place, place


class PixelwiseLayer(Layer):
    """Every kind of pixelwise step, on the input and three more tensors."""

    kind = PIXELWISE
    kinds = (LOAD, NORM, LINEAR, SILU, LOAD, TIMES, LOAD, PLUS, LOAD, CONCAT, LINEAR, PROJECT)
    eps = 1e-5

    def __init__(self, size: Sequence[int], channels: int) -> None:
        image = (*size, channels)
        self.shapes = [image, image, image]  # of the tensors to load
        self.shapes += [
            (channels,),
            (channels,),
            (channels, channels),
            (channels,),
            (channels, 2 * channels),
            (channels,),
            (channels, channels),
        ]
        self.widths = [channels] * 9 + [2 * channels, channels, channels]

    def reference(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return pixelwise_in_torch([x, *parameters[:3]], parameters[3:], self.kinds, [self.eps] * len(self.kinds))

    def structs(self, case: Case, size: Sequence[int], places: Places) -> tuple[Address, Address]:
        tensors = self._tensors(case, size, [places.x, *places.parameters[:3]])
        grads = self._tensors(case, size, [places.grad_x, *places.grads[:3]])
        layers = self._layers(case, places)
        return tuple(  # type: ignore[return-value]
            self._problem(case, size, tensors, grads, layers, y) for y in (places.y, places.grad_y)
        )

    @staticmethod
    def _strides(size: Sequence[int]) -> tuple[int, int, int, int]:
        _, height, width, channels = size
        return height * width * channels, width * channels, channels, 1

    def _tensors(self, case: Case, size: Sequence[int], addresses: list[Address]) -> Address:
        array = (PixelTensor * len(addresses))()
        for tensor in array:
            tensor.channels, tensor.strides[:] = size[3], self._strides(size)
        place = case.struct(array)
        for i, address in enumerate(addresses):
            case.point(place, i * ctypes.sizeof(PixelTensor), address)
        return place

    def _layers(self, case: Case, places: Places) -> Address:
        array = (PixelLayer * len(self.kinds))()
        for layer, kind, channels in zip(array, self.kinds, self.widths, strict=True):
            layer.kind, layer.channels, layer.eps = kind, channels, self.eps
        place = case.struct(array)
        given = iter(zip(places.parameters[3:], places.grads[3:], strict=True))
        for i, kind in enumerate(self.kinds):
            for field in PARAMETERS.get(kind, ()):
                parameter, grad = next(given)
                start = i * ctypes.sizeof(PixelLayer)
                case.point(place, start + getattr(PixelLayer, field).offset, parameter)
                case.point(place, start + getattr(PixelLayer, f"grad_{field}").offset, grad)
        return place

    def _problem(
        self, case: Case, size: Sequence[int], tensors: Address, grads: Address, layers: Address, y: Address
    ) -> Address:
        batch, height, width, channels = size
        problem = PixelProblem(batch=batch, height=height, width=width, layers=len(self.kinds), **case.common)
        problem.y.channels, problem.y.strides[:] = channels, self._strides(size)
        place = case.struct(problem, tensor=tensors, grad=grads, layer=layers)
        case.point(place, PixelProblem.y.offset, y)
        return place


def program_case(name: str, dtype: torch.dtype, threads: int, layers: list[Layer], size: Sequence[int]) -> Case:
    """Make a program of consecutive layers. Intermediate values and gradients are checked too."""
    case = Case(name, dtype, threads)
    values = [_random(dtype, *size)]
    parameters = [[_random(dtype, *shape, scale=0.5) for shape in layer.shapes] for layer in layers]
    for layer, given in zip(layers, parameters, strict=True):
        values.append(layer.reference(values[-1], *given))
    grad_y = _random(dtype, *size)
    leaves = [*values[:-1], *(parameter for given in parameters for parameter in given)]
    grads = iter(torch.autograd.grad(values[-1], leaves, grad_y))

    value_places = [case.given(values[0])]
    value_places += [case.expected(f"value {i + 1}", value.contiguous()) for i, value in enumerate(values[1:])]
    grad_places = [case.expected(f"grad of value {i}", next(grads).contiguous()) for i in range(len(layers))]
    grad_places.append(case.given(grad_y))
    steps: list[list[Address]] = [[], []]
    for i, (layer, given) in enumerate(zip(layers, parameters, strict=True)):
        expected = [case.expected(f"grad of parameter {i}.{k}", next(grads).contiguous()) for k in range(len(given))]
        addresses = [case.given(parameter) for parameter in given]
        places = Places(*value_places[i : i + 2], grad_places[i + 1], grad_places[i], addresses, expected)
        for direction, place in zip(steps, layer.structs(case, size, places), strict=True):
            direction.append(place)
    _call_programs(case, threads, [layer.kind for layer in layers], steps)
    return case


def image_case(
    name: str,
    dtype: torch.dtype,
    threads: int,
    kind: LayerKind,
    inputs: Sequence[Sequence[int]],
    parameters: Sequence[Sequence[int]] = (),
    kept: int = 0,
) -> Case:
    """Make a program of one step from a layer that needs whole images.

    Args:
        name: Name of the case.
        dtype: Type of all tensors.
        threads: Number of threads.
        kind: The layer, whose `in_torch` is the reference.
        inputs: Shapes of the features.
        parameters: Shapes of the parameters: empty, or the shape of the weight.
        kept: Number of values that forward saves for backward.
    """
    case = Case(name, dtype, threads)
    tensors = [_random(dtype, *shape) for shape in (*inputs, *parameters)]
    y = kind.in_torch(*tensors)
    grad_y = _random(dtype, *y.shape)
    grads = torch.autograd.grad(y, tensors, grad_y)
    batch, height, width, channels = inputs[0]
    problem = ImageProblem(
        batch=batch, height=height, width=width, channels=channels, y_height=y.shape[1], y_width=y.shape[2],
        **case.common,
    )  # fmt: skip
    place = case.struct(problem, y=case.expected("y", y.contiguous()), grad_y=case.given(grad_y))
    if kept:
        case.point(place, ImageProblem.kept.offset, case.room(kept))
    for i, (tensor, grad) in enumerate(zip(tensors, grads, strict=True)):
        offsets = (ImageProblem.x.offset + 8 * i, ImageProblem.grad_x.offset + 8 * i)
        if i >= len(inputs):
            offsets = (ImageProblem.weight.offset, ImageProblem.grad_weight.offset)
        case.point(place, offsets[0], case.given(tensor))
        case.point(place, offsets[1], case.expected(f"gradient {i}", grad.contiguous()))
    _call_programs(case, threads, [kind.step], [[place], [place]])
    return case


def _call_programs(case: Case, threads: int, kinds: Sequence[int], problems: Sequence[Sequence[Address]]) -> None:
    """Add calls of a forward and a backward program, given the problem of each step in both directions."""
    for function, of_steps in zip(("program_forward", "program_backward"), problems, strict=True):
        array = (ProgramStep * len(kinds))()
        for step, kind in zip(array, kinds, strict=True):
            step.kind = kind
        place = case.struct(array)
        for i, problem in enumerate(of_steps):
            case.point(place, i * ctypes.sizeof(ProgramStep) + ProgramStep.problem.offset, problem)
        program = case.struct(Program(Threads(threads), len(kinds)), steps=place)
        case.calls.append((function, program))

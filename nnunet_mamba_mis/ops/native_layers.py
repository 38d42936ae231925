"""Layers that need whole images, described for the native code by a kind and parameters."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.native_structs import ImageProblem
from nnunet_mamba_mis.ops.selective_scan import registry
from nnunet_mamba_mis.ops.selective_scan.chunked import DifferentiableBackend
from nnunet_mamba_mis.ops.selective_scan.native import NativeBackend

# StepKind of csrc/program.h
PIXELWISE, SCAN, DEPTHWISE, GATE, RESIZE, CHANNEL_SUMMARY, SPATIAL_CONVOLUTION, PIXEL_SUMMARY, ATTEND = range(9)

Shape = tuple[int, ...]  # of features: batch, H, W, channels


class UnfitError(Exception):
    """The native code does not support a layer or an expression."""


class LayerKind:
    """One kind of layer: a computation on one or more features (batch, H, W, channels).

    Attributes:
        step: Number of this kind in the native code.
        adds: Whether backward can add to existing gradients, so that layers can share inputs.
        keeps_inputs: Whether backward reads the inputs.
    """

    step: ClassVar[int]
    adds: ClassVar[bool] = True
    keeps_inputs: ClassVar[bool] = True

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Return the result's shape for inputs of these shapes.

        Raises:
            UnfitError: The native code, which has no bounds checks, does not support the shapes.
        """
        raise NotImplementedError

    def kept(self, problem: ImageProblem) -> int:
        """Return the number of values that forward saves for backward, besides inputs."""
        return 0

    def in_torch(self, *given: Tensor) -> Tensor:
        """Compute the result from inputs and parameters, by PyTorch operations that all transforms support."""
        raise NotImplementedError


class NativeLayer(NamedTuple):
    """A layer as the native code sees it."""

    kind: LayerKind
    parameters: tuple[Tensor, ...]


class FixedLayer(LayerKind):
    """A kind of layer without parameters. Each instance can be called as a layer."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Apply the layer to its inputs."""
        return self.in_torch(*inputs)

    def native_layer(self) -> NativeLayer:
        """Describe this layer to native code (see `native_layer_of`)."""
        return NativeLayer(self, ())


def _require(fits: bool) -> None:
    if not fits:
        raise UnfitError


def _require_shapes(parameters: Sequence[Tensor], *shapes: tuple[int, ...]) -> None:
    _require([tuple(p.shape) for p in parameters] == [*shapes])


@dataclass(frozen=True)
class DepthwiseConvolution(LayerKind):
    """Depthwise 3×3 convolution: weight (C, 1, 3, 3), bias (C,)."""

    step = DEPTHWISE
    adds = False

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Implement `LayerKind.result`."""
        channels = shapes[0][3]
        _require_shapes(parameters, (channels, 1, 3, 3), (channels,))
        return shapes[0]

    def in_torch(self, *given: Tensor) -> Tensor:
        """Implement `LayerKind.in_torch`."""
        x, weight, bias = given
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class SpectralFilter(LayerKind):
    """Spectral gate: weight and bias (H, W//2 + 1, C, 2). C must be even: channels are transformed in pairs."""

    size: tuple[int, int]

    step = GATE
    adds = False
    keeps_inputs = False  # backward reads the spectrum that forward saves

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Implement `LayerKind.result`."""
        _, height, width, channels = shapes[0]
        _require(channels % 2 == 0 and (height, width) == self.size)
        _require_shapes(parameters, *[(height, width // 2 + 1, channels, 2)] * 2)
        return shapes[0]

    def kept(self, problem: ImageProblem) -> int:
        """Implement `LayerKind.kept`."""
        return native.library().mamba_mis_spectrum_size(ctypes.byref(problem))

    def in_torch(self, *given: Tensor) -> Tensor:
        """Implement `LayerKind.in_torch`."""
        x = given[0]
        weight, bias = map(torch.view_as_complex, given[1:])
        spectrum = weight * torch.fft.rfft2(x, dim=(1, 2), norm="ortho") + bias
        return torch.fft.irfft2(spectrum, s=x.shape[1:3], dim=(1, 2), norm="ortho")


@dataclass(frozen=True)
class ProjectedScan(LayerKind):
    """S6 along rows: weight (C, C) and bias (C,) of Δ, weight (2N, C) of B and C, A_log (C, N), D (C,)."""

    discretization: str

    step = SCAN

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Implement `LayerKind.result`. Raise `UnfitError` unless the scan runs on the native backend."""
        channels = shapes[0][3]
        weight, A_log = parameters[0], parameters[3]
        _require(A_log.dim() == 2)
        _require(isinstance(registry.fastest_backend(weight, self.discretization), NativeBackend))
        n = A_log.shape[1]
        _require_shapes(parameters, (channels, channels), (channels,), (2 * n, channels), (channels, n), (channels,))
        return shapes[0]

    def in_torch(self, *given: Tensor) -> Tensor:
        """Implement `LayerKind.in_torch`."""
        x, weight, delta_bias, weight_bc, A_log, D = given
        u = x.permute(0, 3, 1, 2)
        backend = DifferentiableBackend()
        y = backend.scan_projected(u, weight, delta_bias, weight_bc, -torch.exp(A_log), D, self.discretization)
        return y.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class SpatialConvolution(LayerKind):
    """7×7 convolution from two channels to one: weight (1, 2, 7, 7)."""

    step = SPATIAL_CONVOLUTION
    adds = False

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Implement `LayerKind.result`."""
        _require(shapes[0][3] == 2)
        _require_shapes(parameters, (1, 2, 7, 7))
        return (*shapes[0][:3], 1)

    def in_torch(self, *given: Tensor) -> Tensor:
        """Implement `LayerKind.in_torch`."""
        x, weight = given
        return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=3).permute(0, 2, 3, 1)


def native_layer_of(layer: object) -> NativeLayer | None:
    """Return `layer.native_layer()`, or None for a layer that must be called, because native code cannot replace it.

    Such a layer lacks the method `native_layer`, has hooks, belongs to a subclass, or has unusual parameters (see
    `ops.modules`).
    """
    describe = getattr(layer, "native_layer", None)
    return None if describe is None else describe()

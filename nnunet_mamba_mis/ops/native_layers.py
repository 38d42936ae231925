"""Layers that need whole images, in the form of the native code: a kind and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan import registry
from nnunet_mamba_mis.ops.selective_scan.chunked import DifferentiableBackend
from nnunet_mamba_mis.ops.selective_scan.native import NativeBackend


class LayerKind:
    """The computation of one kind of layer."""

    def shapes(self, size: tuple[int, int], channels: int, parameters: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        """Return the shapes that the parameters must have for features of this size, or nothing if no shapes fit.

        The native code does no bounds checks.
        """
        raise NotImplementedError

    def in_torch(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """(batch, H, W, channels) → the same, by PyTorch operations that all transforms know."""
        raise NotImplementedError


class NativeLayer(NamedTuple):
    """A layer."""

    kind: LayerKind
    parameters: tuple[Tensor, ...]


@dataclass(frozen=True)
class DepthwiseConvolution(LayerKind):
    """Depthwise 3×3 convolution: weight (C, 1, 3, 3), bias (C,)."""

    def shapes(self, size: tuple[int, int], channels: int, parameters: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        """As `LayerKind.shapes`."""
        return [(channels, 1, 3, 3), (channels,)]

    def in_torch(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """As `LayerKind.in_torch`."""
        weight, bias = parameters
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class SpectralFilter(LayerKind):
    """Spectral gate: weight and bias (H, W//2 + 1, C, 2), for an even number of channels, which go in pairs."""

    size: tuple[int, int]

    def shapes(self, size: tuple[int, int], channels: int, parameters: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        """As `LayerKind.shapes`."""
        height, width = size
        return [] if channels % 2 or size != self.size else [(height, width // 2 + 1, channels, 2)] * 2

    def in_torch(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """As `LayerKind.in_torch`."""
        weight, bias = map(torch.view_as_complex, parameters)
        spectrum = weight * torch.fft.rfft2(x, dim=(1, 2), norm="ortho") + bias
        return torch.fft.irfft2(spectrum, s=x.shape[1:3], dim=(1, 2), norm="ortho")


@dataclass(frozen=True)
class ProjectedScan(LayerKind):
    """S6 along rows: weight (C, C) and bias (C,) of Δ, weight (2N, C) of B and C, A_log (C, N), D (C,)."""

    discretization: str

    def shapes(self, size: tuple[int, int], channels: int, parameters: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        """As `LayerKind.shapes`; none will do where the scan has another backend than the native one."""
        weight, A_log = parameters[0], parameters[3]
        if A_log.dim() != 2 or not isinstance(registry.fastest_backend(weight, self.discretization), NativeBackend):
            return []
        states = A_log.shape[1]
        return [(channels, channels), (channels,), (2 * states, channels), (channels, states), (channels,)]

    def in_torch(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """As `LayerKind.in_torch`."""
        weight, delta_bias, weight_bc, A_log, D = parameters
        u = x.permute(0, 3, 1, 2)
        backend = DifferentiableBackend()
        y = backend.scan_projected(u, weight, delta_bias, weight_bc, -torch.exp(A_log), D, self.discretization)
        return y.permute(0, 2, 3, 1)


def native_layer_of(layer: object) -> NativeLayer | None:
    """Return `module.native_layer()`, or None for a module without that method or with hooks, which must be called."""
    describe = getattr(layer, "native_layer", None)
    return None if describe is None else describe()

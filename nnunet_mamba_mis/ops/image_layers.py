"""Layers without parameters that need whole images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.native_layers import (
    ATTEND,
    CHANNEL_SUMMARY,
    PIXEL_SUMMARY,
    RESIZE,
    FixedLayer,
    Shape,
    UnfitError,
)
from nnunet_mamba_mis.ops.native_structs import ImageProblem


@dataclass(frozen=True)
class Resize(FixedLayer):
    """Average pooling if the height shrinks, otherwise bilinear interpolation.

    Args:
        size: Height and width of the result.
    """

    # with torch 2.11, torch.compile hashes an instance that has no attributes yet; the default makes that possible
    size: tuple[int, int] = (0, 0)

    step = RESIZE
    keeps_inputs = False

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Implement `LayerKind.result`."""
        return (shapes[0][0], *self.size, shapes[0][3])

    def in_torch(self, *given: Tensor) -> Tensor:
        """Implement `LayerKind.in_torch`."""
        x = given[0].permute(0, 3, 1, 2)
        if x.shape[2] > self.size[0]:
            x = F.adaptive_avg_pool2d(x, self.size)
        else:
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return x.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class ChannelSummary(FixedLayer):
    """Mean and maximum over the channels: (B, H, W, C) → (B, H, W, 2)."""

    step = CHANNEL_SUMMARY

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Implement `LayerKind.result`."""
        return (*shapes[0][:3], 2)

    def in_torch(self, *given: Tensor) -> Tensor:
        """Implement `LayerKind.in_torch`."""
        (x,) = given
        return torch.stack([x.mean(-1), x.amax(-1)], dim=-1)


@dataclass(frozen=True)
class PixelSummary(FixedLayer):
    """Mean and maximum of x σ(s) over the pixels: x (B, H, W, C), s (B, H, W, 1) → (2B, 1, 1, C), means first."""

    step = PIXEL_SUMMARY

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Implement `LayerKind.result`."""
        x, s = shapes
        if s != (*x[:3], 1):
            raise UnfitError
        return (2 * x[0], 1, 1, x[3])

    def kept(self, problem: ImageProblem) -> int:
        """Implement `LayerKind.kept`."""
        return problem.batch * (problem.height * problem.width + problem.channels)

    def in_torch(self, *given: Tensor) -> Tensor:
        """Implement `LayerKind.in_torch`."""
        x, s = given
        y = x * torch.sigmoid(s)
        return torch.cat([y.mean(dim=(1, 2), keepdim=True), y.amax(dim=(1, 2), keepdim=True)])


@dataclass(frozen=True)
class Attend(FixedLayer):
    """x + x σ(s) σ(m + n): x (B, H, W, C), s (B, H, W, 1), m and n joined to (2B, 1, 1, C) → (B, H, W, C)."""

    step = ATTEND

    def result(self, shapes: Sequence[Shape], parameters: Sequence[Tensor]) -> Shape:
        """Implement `LayerKind.result`."""
        x, s, logits = shapes
        if s != (*x[:3], 1) or logits != (2 * x[0], 1, 1, x[3]):
            raise UnfitError
        return x

    def in_torch(self, *given: Tensor) -> Tensor:
        """Implement `LayerKind.in_torch`."""
        x, s, logits = given
        return x + x * torch.sigmoid(s) * torch.sigmoid(logits.unflatten(0, (2, -1)).sum(0))


channel_summary, pixel_summary, attend = ChannelSummary(), PixelSummary(), Attend()

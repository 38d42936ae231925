"""Convolutions on channels-last features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast
from nnunet_mamba_mis.ops.modules import is_itself
from nnunet_mamba_mis.ops.native_layers import DepthwiseConvolution, NativeLayer, SpatialConvolution

_GROUP_WIDTH = 16  # channels that GroupNorm normalizes together


class DepthwiseConv3x3(nn.Conv2d):
    """Depthwise 3×3 convolution with bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def native_layer(self) -> NativeLayer | None:
        """Describe this layer to native code; None if it was modified (see `ops.native_layers.native_layer_of`)."""
        if self.bias is None or not is_itself(self, DepthwiseConv3x3, self.weight, self.bias):
            return None
        return NativeLayer(DepthwiseConvolution(), (self.weight, self.bias))


class SpatialConv7x7(nn.Conv2d):
    """7×7 convolution from two channels to one, in float32 even under autocast."""

    def __init__(self) -> None:
        super().__init__(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, 2) → (B, H, W, 1)."""
        with no_autocast(x):
            return super().forward(at_least_float32(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def native_layer(self) -> NativeLayer | None:
        """Describe this layer to native code; None if it was modified (see `ops.native_layers.native_layer_of`)."""
        if not is_itself(self, SpatialConv7x7, self.weight):
            return None
        return NativeLayer(SpatialConvolution(), (self.weight,))


class PointwiseConv(nn.Conv2d):
    """1×1 convolution with bias, computed as a linear layer."""

    def __init__(self, channels: int, output_channels: int) -> None:
        super().__init__(channels, output_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C')."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class ResidualConvolutions(nn.Module):
    """Two 3×3 convolutions with group norm and LeakyReLU, with a residual (He et al. 2016).

    Instance norm would fail for features of one pixel, so groups have 16 channels. Runs in float32 even under autocast:
    its input may be an unnormalized sum of block outputs.

    Args:
        channels: Channels in and out, a multiple of 16.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = channels // _GROUP_WIDTH
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        with no_autocast(x):
            x = at_least_float32(x).permute(0, 3, 1, 2)
            y = F.leaky_relu(self.norms[0](self.convs[0](x)), inplace=True)
            y = self.norms[1](self.convs[1](y)) + x
            return F.leaky_relu(y, inplace=True).permute(0, 2, 3, 1)

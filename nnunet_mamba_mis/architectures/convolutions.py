"""Convolutions on channels-last features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast
from nnunet_mamba_mis.ops.modules import is_itself
from nnunet_mamba_mis.ops.native_layers import DepthwiseConvolution, NativeLayer, SpatialConvolution


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


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm with scale and bias, for features of any size: a single pixel becomes the bias.

    With CUDA and more than one pixel, this is torch's instance norm, which returns half precision under autocast; a
    group norm would return float32. Otherwise, it is a group norm with one channel per group, which is faster on a CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        # torch's instance norm refuses a single pixel
        if x.is_cuda and x.shape[2] * x.shape[3] > 1:
            return super().forward(x)
        # on a CPU, torch's group norm is inaccurate for channels-last tensors whose means exceed their deviations
        return torch.group_norm(x.contiguous(), self.num_features, self.weight, self.bias, self.eps)


class ResidualConvolutions(nn.Module):
    """Two 3×3 convolutions with instance norm and LeakyReLU, with a residual (He et al. 2016).

    Runs in float32 even under autocast: its input may be an unnormalized sum of block outputs.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False) for _ in range(2)
        )
        self.norms = nn.ModuleList(InstanceNorm(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        with no_autocast(x):
            x = at_least_float32(x).permute(0, 3, 1, 2).contiguous()  # once here, instead of in each norm
            y = F.leaky_relu(self.norms[0](self.convs[0](x)), inplace=True)
            y = self.norms[1](self.convs[1](y)) + x
            return F.leaky_relu(y, inplace=True).permute(0, 2, 3, 1)

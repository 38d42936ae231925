"""Convolutions above quarter resolution: a stem that provides skips, and the upsampling that uses them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.convolutions import InstanceNorm
from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast

# channels at full and half resolution, the two resolutions that account for most of the network's cost
STEM_WIDTHS = (16, 32)


class ConvStem(nn.Module):
    """3×3 convolutions at full and half resolution, then one with stride 2, then LayerNorm.

    Replaces non-overlapping patches (Xiao et al. 2021, "Early convolutions help transformers see better").

    Args:
        input_channels: Channels of the image.
        channels: Channels of the features at quarter resolution.
    """

    def __init__(self, input_channels: int, channels: int) -> None:
        super().__init__()
        full, half = STEM_WIDTHS
        self.at_full = _convolution(input_channels, full)
        self.at_half = nn.Sequential(_convolution(full, half, stride=2), _convolution(half, half))
        self.conv = nn.Conv2d(half, channels, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in, H, W) → skips (B, full, H, W) and (B, half, H/2, W/2), then features (B, H/4, W/4, C)."""
        full = self.at_full(x)
        half = self.at_half(full)
        return [full, half, self.norm(self.conv(half).permute(0, 2, 3, 1))]


class ConvUpsampling(nn.Module):
    """Upsampling from quarter to full resolution in two steps: interpolate, concatenate `ConvStem`'s skip, convolve.

    The preceding LayerNorm runs in float32 even under autocast: its input is an unnormalized sum of block outputs.

    Args:
        channels: Channels of the features at quarter resolution.

    Attributes:
        output_channels: Channels of the features at full resolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        full, half = STEM_WIDTHS
        self.output_channels = full
        self.norm = nn.LayerNorm(channels)
        # the second convolution narrows to the next skip's width, as each channel costs most at full resolution
        self.at_half = nn.Sequential(_convolution(channels + half, half), _convolution(half, full))
        self.at_full = _convolution(2 * full, full)

    def forward(self, x: Tensor, full: Tensor, half: Tensor) -> Tensor:
        """(B, H/4, W/4, C) and the skips of `ConvStem` → (B, H, W, output_channels)."""
        with no_autocast(x):
            x = self.norm(at_least_float32(x)).permute(0, 3, 1, 2).contiguous()  # once here, instead of in each norm
        x = self.at_half(_join(x, half))
        return self.at_full(_join(x, full)).permute(0, 2, 3, 1)


def _convolution(channels: int, output_channels: int, stride: int = 1) -> nn.Sequential:
    """Return the convolution, norm and nonlinearity of nnU-Net's networks, without the bias that the norm would cancel.

    dynamic-network-architectures' own block registers each of them twice. When modules have two names, torch.export
    wraps the whole network in proxies, whose calls native code cannot replace.
    """
    return nn.Sequential(
        nn.Conv2d(channels, output_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        InstanceNorm(output_channels),
        nn.LeakyReLU(inplace=True),
    )


def _join(x: Tensor, skip: Tensor) -> Tensor:
    """Upsample x to twice its size, and concatenate the skip along the channels."""
    upsampled = F.interpolate(x.to(skip.dtype), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.cat([upsampled, skip], dim=1)

"""Convolutions above a quarter of the resolution: a stem whose features are skips, and the way back up to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast

# channels at full and at half resolution, where most of a network's cost is
STEM_WIDTHS = (16, 32)


class ConvStem(nn.Module):
    """Convolutions 3×3 at full and half resolution, then one with stride 2 and LayerNorm.

    Early convolutions instead of patches (Xiao et al. 2021, "Early convolutions help transformers see better").

    Args:
        input_channels: Channels of the image.
        channels: Channels of the features at a quarter of the resolution.
    """

    def __init__(self, input_channels: int, channels: int) -> None:
        super().__init__()
        full, half = STEM_WIDTHS
        self.at_full = _convolution(input_channels, full)
        self.at_half = nn.Sequential(_convolution(full, half, stride=2), _convolution(half, half))
        self.conv = nn.Conv2d(half, channels, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in, H, W) → (B, full, H, W) and (B, half, H/2, W/2), which are skips, and (B, H/4, W/4, C)."""
        full = self.at_full(x)
        half = self.at_half(full)
        return [full, half, self.norm(self.conv(half).permute(0, 2, 3, 1))]


class ConvUpsampling(nn.Module):
    """From a quarter of the resolution to full in two steps: bilinear, joined with `ConvStem`'s skip, convolutions.

    The LayerNorm before them is in float32 even under autocast: its input is a sum of blocks that no norm has bounded.

    Args:
        channels: Channels of the features at a quarter of the resolution.

    Attributes:
        output_channels: Channels of the features at full resolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        full, half = STEM_WIDTHS
        self.output_channels = full
        self.norm = nn.LayerNorm(channels)
        # the second narrows to the next skip's width, as at full resolution a channel costs most
        self.at_half = nn.Sequential(_convolution(channels + half, half), _convolution(half, full))
        self.at_full = _convolution(2 * full, full)

    def forward(self, x: Tensor, full: Tensor, half: Tensor) -> Tensor:
        """(B, H/4, W/4, C), with the skips of `ConvStem` → (B, H, W, output_channels)."""
        with no_autocast(x):
            x = self.norm(at_least_float32(x)).permute(0, 3, 1, 2)
        x = self.at_half(_join(x, half))
        return self.at_full(_join(x, full)).permute(0, 2, 3, 1)


def _convolution(channels: int, output_channels: int, stride: int = 1) -> nn.Sequential:
    """Convolution, norm and nonlinearity of nnU-Net's networks, but for the bias, which the norm would remove again.

    dynamic-network-architectures' own block registers each of them twice. With modules of two names, torch.export
    wraps all of a network in proxies, for which native code does not stand in.
    """
    return nn.Sequential(
        nn.Conv2d(channels, output_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.InstanceNorm2d(output_channels, affine=True),
        nn.LeakyReLU(inplace=True),
    )


def _join(x: Tensor, skip: Tensor) -> Tensor:
    """Twice the size of x, and the skip of that size, side by side in the channels."""
    upsampled = F.interpolate(x.to(skip.dtype), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.cat([upsampled, skip], dim=1)

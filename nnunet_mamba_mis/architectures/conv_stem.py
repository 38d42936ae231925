"""Convolutions above a quarter of the resolution: a stem whose features are skips, and the way back up to them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast

# channels at full and at half resolution: most of the cost of a pixel is here
STEM_WIDTHS = (16, 32)
# as nnU-Net's networks have them, but for the bias, which an instance norm removes again
_LAYER: dict[str, Any] = {
    "conv_op": nn.Conv2d,
    "kernel_size": 3,
    "initial_stride": 1,
    "norm_op": nn.InstanceNorm2d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}


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
        self.at_full = StackedConvBlocks(1, input_channels=input_channels, output_channels=full, **_LAYER)
        self.at_half = StackedConvBlocks(2, input_channels=full, output_channels=half, **_LAYER | {"initial_stride": 2})
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
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        full, half = STEM_WIDTHS
        self.norm = nn.LayerNorm(channels)
        # to the skip's width before it is brought to full resolution, where every channel costs most
        self.at_half = StackedConvBlocks(2, input_channels=channels + half, output_channels=[half, full], **_LAYER)
        self.at_full = StackedConvBlocks(1, input_channels=2 * full, output_channels=full, **_LAYER)

    def forward(self, x: Tensor, full: Tensor, half: Tensor) -> Tensor:
        """(B, H/4, W/4, C), and the skips of `ConvStem` → (B, H, W, full)."""
        with no_autocast(x):
            x = self.norm(at_least_float32(x)).permute(0, 3, 1, 2)
        x = self.at_half(_join(x, half))
        return self.at_full(_join(x, full)).permute(0, 2, 3, 1)


def _join(x: Tensor, skip: Tensor) -> Tensor:
    """Twice the size of x, and the skip of that size, side by side in the channels."""
    upsampled = F.interpolate(x.to(skip.dtype), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.cat([upsampled, skip], dim=1)

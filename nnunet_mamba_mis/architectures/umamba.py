"""U-Mamba (Ma, Li and Wang 2024) in 2D, built on dynamic-network-architectures' residual U-Net."""

from __future__ import annotations

from typing import Any

from dynamic_network_architectures.architectures.unet import ResidualUNet
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.mamba_block import Mamba
from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast

PLACES = ("bottleneck", "encoder")


class MambaLayer(nn.Module):
    """LayerNorm, then Mamba, over the pixels of an image, row by row.

    Runs in float32 even under autocast: U-Mamba is known for NaN losses in half precision.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        with no_autocast(x):
            tokens = at_least_float32(x).flatten(2).transpose(1, 2)
            return self.mamba(self.norm(tokens)).transpose(1, 2).unflatten(2, x.shape[2:])


class UMamba(ResidualUNet):
    """A residual U-Net with Mamba layers in its encoder (Ma, Li and Wang 2024, section 2).

    Args:
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        place: "bottleneck" for a layer after the last stage of the encoder (U-Mamba_Bot), "encoder" for one after each
            stage (U-Mamba_Enc).
        residual_unet: Further arguments of `ResidualUNet`.

    Raises:
        ValueError: `place` is neither of these.
    """

    def __init__(self, input_channels: int, num_classes: int, place: str = "bottleneck", **residual_unet: Any) -> None:
        if place not in PLACES:
            raise ValueError(f"place {place!r} is not one of {', '.join(map(repr, PLACES))}")
        super().__init__(input_channels, num_classes=num_classes, **residual_unet)
        *upper, bottleneck = self.encoder.output_channels
        self.mamba_layers = nn.ModuleList(MambaLayer(c) if place == "encoder" else nn.Identity() for c in upper)
        self.mamba_layers.append(MambaLayer(bottleneck))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, input_channels, H, W) → logits (B, num_classes, H, W); with deep supervision a list, as in nnU-Net."""
        x = self.encoder.stem(x)
        skips = []
        for stage, mamba in zip(self.encoder.stages, self.mamba_layers, strict=True):
            x = mamba(stage(x))
            skips.append(x)
        return self.decoder(skips)

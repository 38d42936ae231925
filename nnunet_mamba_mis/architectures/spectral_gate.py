"""Spectral gate (SG): a learned filter in the frequency domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast
from nnunet_mamba_mis.ops.modules import is_itself
from nnunet_mamba_mis.ops.native_layers import NativeLayer, SpectralFilter


class SpectralGate(nn.Module):
    """Complex weight and bias for each frequency and channel, between rfft2 and irfft2 (both ortho).

    Runs in float32 even under autocast. The parameters fit only features of the size that the gate was built for.

    Args:
        size: Height and width of the features.
        channels: Channels in and out.
    """

    def __init__(self, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        height, width = size
        self.size = size
        self.weight = nn.Parameter(0.02 * torch.randn(height, width // 2 + 1, channels, 2))
        self.bias = nn.Parameter(torch.zeros(height, width // 2 + 1, channels, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        with no_autocast(x):
            # torch.compile knows the strides of the transforms only for contiguous images
            images = at_least_float32(x).permute(0, 3, 1, 2).contiguous()
            weight, bias = (torch.view_as_complex(p).permute(2, 0, 1) for p in (self.weight, self.bias))
            spectrum = torch.addcmul(bias, torch.fft.rfft2(images, norm="ortho"), weight)
            return torch.fft.irfft2(spectrum.contiguous(), s=self.size, norm="ortho").permute(0, 2, 3, 1)

    def native_layer(self) -> NativeLayer | None:
        """Describe this layer to native code; None if it was modified (see `ops.native_layers.native_layer_of`)."""
        if not is_itself(self, SpectralGate, self.weight, self.bias):
            return None
        return NativeLayer(SpectralFilter(self.size), (self.weight, self.bias))

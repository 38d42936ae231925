"""Changes of resolution: stem, patch merge and patch expand."""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast
from nnunet_mamba_mis.ops import Evaluator, lazy


class PatchStem(nn.Module):
    """Non-overlapping 4×4 patches to channels: convolution with stride 4, then LayerNorm."""

    def __init__(self, input_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_channels, channels, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in, H, W) → [(B, H/4, W/4, C)], a list like that of a stem with skips."""
        return [self.norm(self.conv(x).permute(0, 2, 3, 1))]


class PatchMerge(nn.Module):
    """Concatenation of 2×2 neighbours, LayerNorm, then a projection to twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.proj = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.evaluate = Evaluator()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H/2, W/2, 2C)."""
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels)
        # neighbours (row, column) in the order (0,0), (1,0), (0,1), (1,1)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.evaluate(lazy(x).then(self.norm, self.proj))


class PatchExpand(nn.Module):
    """Linear projection of each pixel to factor × factor pixels, then LayerNorm.

    Runs in float32 even under autocast: its input is an unnormalized sum of block outputs.
    """

    def __init__(self, channels: int, output_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.proj = nn.Linear(channels, factor * factor * output_channels, bias=False)
        self.norm = nn.LayerNorm(output_channels)
        self.evaluate = Evaluator()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, factor·H, factor·W, C')."""
        with no_autocast(x):
            x = self.proj(at_least_float32(x))
            x = x.unflatten(-1, (self.factor, self.factor, -1)).transpose(2, 3)
            return self.evaluate(lazy(x.flatten(1, 2).flatten(2, 3)).then(self.norm))

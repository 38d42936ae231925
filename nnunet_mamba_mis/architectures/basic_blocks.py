"""BSSS, the block of encoder and decoder, and the blocks that replace it in comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.convolutions import DepthwiseConv3x3
from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast
from nnunet_mamba_mis.architectures.scan_blocks import SCANS, NoSSM, Scan, scan_of
from nnunet_mamba_mis.architectures.spectral_gate import SpectralGate
from nnunet_mamba_mis.ops import Expression, ExpressionModule, concat


class BSSS(ExpressionModule):
    """Basic block: one third of the channels is the gate, one third is scanned (BFSS), one third is filtered (SG).

    Args:
        channels: Channels in and out.
        size: Height and width of the features.
        d_state: States per channel of the scans.
        discretization: "zoh" or "mamba".
        scan: "bfss" or, as an ablation, "ss2d".
        spectral_gate: Whether to include the spectral part; without it (ablation), its third of the channels is unused.
    """

    scans: ClassVar[Mapping[str, type[Scan]]] = SCANS

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        d_state: int = 32,
        discretization: str = "zoh",
        scan: str = "bfss",
        spectral_gate: bool = True,
    ) -> None:
        super().__init__()
        first, second = channels // 3, 2 * channels // 3
        self.widths = (first, second - first, channels - second)
        used = self.widths if spectral_gate else self.widths[:2]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in used)
        self.projs = nn.ModuleList(nn.Linear(width, channels) for width in used)
        self.depthwise = DepthwiseConv3x3(channels)
        self.scan: Scan = self.scans[scan](channels, d_state, discretization)
        if spectral_gate:
            self.spectral_gate: SpectralGate | None = SpectralGate(size, channels)
            self.spectral_norm = nn.LayerNorm(channels)
        else:
            self.spectral_gate = None
        self.fusion = nn.Linear(2 * channels if spectral_gate else channels, channels)
        self.out = nn.Linear(channels, channels)

    def expression(self, x: Expression) -> Expression:
        """Return `forward` as an expression, to be evaluated together with the layers around it."""
        gating, scanned, filtered = x.split(self.widths)
        gate = gating.then(self.norms[0], self.projs[0], F.silu)
        mixed = scan_of(self.scan, scanned.then(self.norms[1], self.projs[1], self.depthwise, F.silu))
        if self.spectral_gate is not None:
            spectral = filtered.then(self.norms[2], self.projs[2], self.spectral_gate, self.spectral_norm, F.silu)
            mixed = concat(mixed, spectral)
        return (mixed.then(self.fusion) * gate).then(self.out) + x


class NoSSMBlock(BSSS):
    """BSSS with depthwise convolutions instead of scans (control). Takes `BSSS`'s arguments; scan must be "bfss"."""

    scans: ClassVar[Mapping[str, type[Scan]]] = {"bfss": NoSSM}


class CNNBlock(nn.Module):
    """Conv 3×3, BatchNorm, ReLU, without a residual (ablation).

    Takes the arguments of `BSSS`, and ignores all but channels.
    """

    def __init__(self, channels: int, size: tuple[int, int], **_unused: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        with no_autocast(x):  # the bridge's products overflow half precision
            return F.relu(self.norm(self.conv(at_least_float32(x).permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class ViTBlock(nn.Module):
    """Pre-norm self-attention with 4 heads and an MLP of ratio 4 (ablation). Takes the arguments of `CNNBlock`."""

    heads = 4

    def __init__(self, channels: int, size: tuple[int, int], **_unused: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        qkv = self.qkv(self.norm1(x)).flatten(1, 2).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.proj(attended).view_as(x)
        return x + self.mlp(self.norm2(x))


BLOCKS = {"bsss": BSSS, "nossm": NoSSMBlock, "cnn": CNNBlock, "vit": ViTBlock}

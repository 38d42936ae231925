"""Attention-based multi-scale feature fusion bridge (AMFFB) between the encoder's skips and the decoder."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.convolutions import DepthwiseConv3x3, PointwiseConv
from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast
from nnunet_mamba_mis.architectures.scan_blocks import BFSS, SS2D, Scan
from nnunet_mamba_mis.ops import Evaluator, lazy


class SCABFSS(nn.Module):
    """Spatial, then channel attention, each through a BFSS, with a residual connection.

    Args:
        channels: Channels in and out.
        d_state: States per channel of the scans.
        discretization: "zoh" or "mamba".
        scan: Class of the scans: BFSS, or its replacement.
    """

    def __init__(self, channels: int, d_state: int = 32, discretization: str = "zoh", scan: type[Scan] = BFSS) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.spatial_conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.spatial_scan = scan(1, d_state, discretization)
        self.channel_in = nn.Linear(channels, squeezed, bias=False)
        self.channel_scan = scan(squeezed, d_state, discretization)
        self.channel_out = nn.Linear(squeezed, channels, bias=False)
        self.register_load_state_dict_pre_hook(_refuse_bfss_for_ss2d)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        y = x * torch.sigmoid(self._spatial_logits(x))
        mean, peak = y.mean(dim=(1, 2), keepdim=True), y.amax(dim=(1, 2), keepdim=True)
        logits = self._channel_logits(torch.cat([mean, peak])).unflatten(0, (2, x.shape[0]))
        return x + y * torch.sigmoid(logits.sum(0))

    def _spatial_logits(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.mean(-1), x.amax(-1)], dim=1)
        with no_autocast(x):  # skips are unnormalized sums: half precision could overflow
            pooled = self.spatial_conv(at_least_float32(pooled))
        return self.spatial_scan(pooled.permute(0, 2, 3, 1))

    def _channel_logits(self, pooled: Tensor) -> Tensor:
        return self.channel_out(F.silu(self.channel_scan(self.channel_in(pooled))))


class AMFFB(nn.Module):
    """Attention on each skip, then fusion: each level becomes the product of all levels, resized to match it.

    Args:
        channels: Channels of each level, highest resolution first.
        d_state: States per channel of the scans.
        discretization: "zoh" or "mamba".
        attention: Whether to include the attention part.
        fusion: Whether to include the multi-scale part.
        width: Channels of the levels when they are multiplied.
        scan: Class of the scans: BFSS, or its replacement.
    """

    def __init__(
        self,
        channels: list[int],
        d_state: int = 32,
        discretization: str = "zoh",
        attention: bool = True,
        fusion: bool = True,
        width: int = 32,
        scan: type[Scan] = BFSS,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(SCABFSS(c, d_state, discretization, scan) for c in channels if attention)
        levels = channels if fusion else []
        self.reduce = nn.ModuleList(PointwiseConv(c, width) for c in levels)
        self.smooth = nn.ModuleList(nn.ModuleList(DepthwiseConv3x3(width) for _ in levels) for _ in levels)
        self.expand = nn.ModuleList(PointwiseConv(width, c) for c in levels)
        self.evaluators = [Evaluator() for _ in levels]

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Skips (B, H_i, W_i, C_i) → skips of the same shapes."""
        if len(self.attentions):
            skips = [attention(skip) for attention, skip in zip(self.attentions, skips, strict=True)]
        if len(self.expand):
            with no_autocast(skips[0]):  # neither skips nor products are bounded: half precision could overflow
                reduced = [conv(at_least_float32(skip)) for conv, skip in zip(self.reduce, skips, strict=True)]
                skips = [self._fuse(target, reduced) for target in range(len(skips))]
        return skips

    def _fuse(self, target: int, levels: list[Tensor]) -> Tensor:
        size = (levels[target].shape[1], levels[target].shape[2])
        smooth: nn.ModuleList = self.smooth[target]  # type: ignore[assignment]
        smoothed = [lazy(_resize(x, size)).then(conv) for conv, x in zip(smooth, levels, strict=True)]
        return self.expand[target](self.evaluators[target](functools.reduce(operator.mul, smoothed)))


def _refuse_bfss_for_ss2d(attention: SCABFSS, state_dict: dict, prefix: str, *_: Any) -> None:
    """Raise one clear error instead of torch's list of keys: networks with SS2D once had BFSS in the bridge."""
    if isinstance(attention.spatial_scan, SS2D) and f"{prefix}spatial_scan.fusion.0.weight" in state_dict:
        raise RuntimeError(
            "these weights have BFSS in the bridge, but this network has SS2D there, as in its blocks. They belong to "
            "another network, or to an _ss2d network of an earlier version: train it again"
        )


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize by average pooling from a higher resolution, by bilinear interpolation from a lower one."""
    if x.shape[1:3] == size:
        return x
    x = x.permute(0, 3, 1, 2)
    if x.shape[2] > size[0]:
        x = F.adaptive_avg_pool2d(x, size)
    else:
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)

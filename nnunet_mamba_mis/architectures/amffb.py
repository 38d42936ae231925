"""Attention-based multi-scale feature fusion bridge (AMFFB) between the encoder's skips and the decoder."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.convolutions import DepthwiseConv3x3, PointwiseConv, SpatialConv7x7
from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast
from nnunet_mamba_mis.architectures.scan_blocks import BFSS, SS2D, Scan, scan_of
from nnunet_mamba_mis.ops import (
    Evaluator,
    Expression,
    ExpressionModule,
    Resize,
    apply,
    attend,
    channel_summary,
    lazy,
    pixel_summary,
)


class SCABFSS(ExpressionModule):
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
        self.spatial_conv = SpatialConv7x7()  # in float32: skips are unnormalized sums of block outputs
        self.spatial_scan = scan(1, d_state, discretization)
        self.channel_in = nn.Linear(channels, squeezed, bias=False)
        self.channel_scan = scan(squeezed, d_state, discretization)
        self.channel_out = nn.Linear(squeezed, channels, bias=False)
        self.register_load_state_dict_pre_hook(_refuse_bfss_for_ss2d)

    def expression(self, x: Expression) -> Expression:
        """Return `forward` as an expression, to be evaluated together with the layers around it."""
        spatial = scan_of(self.spatial_scan, x.then(channel_summary, self.spatial_conv))
        squeezed = apply(pixel_summary, x, spatial).then(self.channel_in)
        channel = scan_of(self.channel_scan, squeezed).then(F.silu, self.channel_out)
        return apply(attend, x, spatial, channel)


class AMFFB(nn.Module):
    """Attention on each skip, then fusion: each level becomes the product of all levels, resized to match it.

    Args:
        channels: Channels of each level, highest resolution first.
        d_state: States per channel of the scans.
        discretization: "zoh" or "mamba".
        attention: Whether to include the attention part.
        fusion: Whether to include the multi-scale part.
        width: Channels that each level is reduced to before the product.
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
        resized = [lazy(x) if x.shape[1:3] == size else lazy(x).then(Resize(size)) for x in levels]
        smoothed = [x.then(conv) for conv, x in zip(smooth, resized, strict=True)]
        return self.expand[target](self.evaluators[target](functools.reduce(operator.mul, smoothed)))


def _refuse_bfss_for_ss2d(attention: SCABFSS, state_dict: dict, prefix: str, *_: Any) -> None:
    """Raise one clear error instead of torch's list of keys: networks with SS2D once had BFSS in the bridge."""
    if isinstance(attention.spatial_scan, SS2D) and f"{prefix}spatial_scan.fusion.0.weight" in state_dict:
        raise RuntimeError(
            "these weights have BFSS in the bridge, but this network has SS2D there, as in its blocks. They belong to "
            "another network, or to an _ss2d network of an earlier version: train this network again"
        )

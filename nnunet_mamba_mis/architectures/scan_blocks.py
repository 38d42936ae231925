"""S6 scans over an image: one direction, the paper's fusion of two (BFSS), the sum of four (SS2D), and a control."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.ops import Expression, ExpressionModule, concat, s6, selective_scan
from nnunet_mamba_mis.ops.modules import has_ordinary_weights, is_itself, runs_forward_alone
from nnunet_mamba_mis.ops.native_layers import NativeLayer, ProjectedScan


class S6(nn.Module):
    """Selective state-space layer over an image's pixels, row by row (Mamba's S6, by default with zero-order hold).

    Args:
        channels: Channels in and out.
        d_state: States per channel.
        discretization: "zoh" or "mamba".
    """

    def __init__(self, channels: int, d_state: int = 32, discretization: str = "zoh") -> None:
        super().__init__()
        self.discretization = discretization
        self.delta = nn.Linear(channels, channels)
        nn.init.constant_(self.delta.bias, -4.0)
        self.bc = nn.Linear(channels, 2 * d_state, bias=False)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C), scanned in float32 even under autocast."""
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        if self._has_ordinary_projections():
            weights = (self.delta.weight, self.delta.bias, self.bc.weight, A, self.D)
            return s6(x, *weights, discretization=self.discretization)
        # a hooked, pruned or replaced projection must be called
        u, delta, bc = (t.movedim(-1, 1) for t in (x, self.delta(x), self.bc(x)))
        B, C = bc.chunk(2, dim=1)
        y = selective_scan(u, delta, A, B, C, self.D, delta_softplus=True, discretization=self.discretization)
        return y.movedim(1, -1)  # type: ignore[union-attr]

    def native_layer(self) -> NativeLayer | None:
        """Describe this layer to native code; None if it was modified (see `ops.native_layers.native_layer_of`)."""
        if not is_itself(self, S6, self.A_log, self.D) or not self._has_ordinary_projections():
            return None
        parameters = (self.delta.weight, self.delta.bias, self.bc.weight, self.A_log, self.D)
        return NativeLayer(ProjectedScan(self.discretization), parameters)

    def _has_ordinary_projections(self) -> bool:
        return has_ordinary_weights(self.delta, nn.Linear) and has_ordinary_weights(self.bc, nn.Linear, bias=False)


class DepthwiseMixer(nn.Module):
    """Replacement for S6 in the control without state spaces: about as many parameters and operations, no recurrence.

    A linear layer, then two depthwise convolutions (7×7 for 32 states), each applied twice as a residual step. With 32
    states, S6 and this layer have C² + 98C parameters each. S6 takes 2C² + 416C operations per pixel: 2 per projection
    weight and, as is usual, 9 per channel and state. This layer takes 2C² + 412C: 2 per weight of the linear layer and,
    per channel in each of four residual steps, 2 per kernel weight and 5 for SiLU and sum.

    Args:
        channels: Channels in and out.
        d_state: States per channel of the S6 that this layer replaces.
        discretization: Unused.
    """

    def __init__(self, channels: int, d_state: int = 32, discretization: str = "zoh") -> None:
        super().__init__()
        # two kernels match the 3N + 2 parameters per channel of S6's B, C, A, D and Δ's bias; kernels have odd sides
        side = 2 * round((((3 * d_state + 2) / 2) ** 0.5 - 1) / 2) + 1
        self.proj = nn.Linear(channels, channels, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels, bias=False) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        y = self.proj(x).permute(0, 3, 1, 2)
        for conv in self.convs:
            for _ in range(2):
                y = y + F.silu(conv(y))
        return y.permute(0, 2, 3, 1)


class BFSS(ExpressionModule):
    """Bidirectional fusion selective scan: a row-major and a column-major S6 with their own weights, then fused.

    Args:
        channels: Channels in and out.
        d_state: States per channel.
        discretization: "zoh" or "mamba".
    """

    mixer: ClassVar[type[S6] | type[DepthwiseMixer]] = S6

    def __init__(self, channels: int, d_state: int = 32, discretization: str = "zoh") -> None:
        super().__init__()
        self.scans = nn.ModuleList(self.mixer(channels, d_state, discretization) for _ in range(2))
        self.fusion = nn.Sequential(
            nn.LayerNorm(2 * channels), nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def expression(self, x: Expression) -> Expression:
        """Return `forward` as an expression, to be evaluated together with the layers around it."""
        return concat(x.then(self.scans[0]), x.columns(self.scans[1])).then(self.fusion)


class NoSSM(BFSS):
    """BFSS with depthwise convolutions instead of its scans (control). Takes the arguments of `BFSS`."""

    mixer = DepthwiseMixer


class SS2D(nn.Module):
    """Four-directional selective scan (ablation): row-major, column-major and the reverse of both, summed.

    Args:
        channels: Channels in and out.
        d_state: States per channel.
        discretization: "zoh" or "mamba".
    """

    def __init__(self, channels: int, d_state: int = 32, discretization: str = "zoh") -> None:
        super().__init__()
        self.scans = nn.ModuleList(S6(channels, d_state, discretization) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        columns = x.transpose(1, 2)
        by_rows = self.scans[0](x) + self.scans[2](x.flip(1, 2)).flip(1, 2)
        by_columns = self.scans[1](columns) + self.scans[3](columns.flip(1, 2)).flip(1, 2)
        return by_rows + by_columns.transpose(1, 2)


def scan_of(scan: nn.Module, x: Expression) -> Expression:
    """Apply a scan to x; an unmodified BFSS is evaluated together with the layers around it."""
    if isinstance(scan, BFSS) and type(scan) in (BFSS, NoSSM) and runs_forward_alone(scan):
        return scan.expression(x)
    return x.then(scan)


Scan = BFSS | SS2D
SCANS: dict[str, type[Scan]] = {"bfss": BFSS, "ss2d": SS2D}

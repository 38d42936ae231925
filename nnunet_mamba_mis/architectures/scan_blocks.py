"""S6 scans over an image: one direction, the paper's fusion of two (BFSS), and the sum of four (SS2D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.ops import selective_scan


class S6(nn.Module):
    """Selective state space layer over a sequence (Mamba's S6, with the exact zero-order hold by default).

    Args:
        channels: Channels in and out.
        d_state: States a channel.
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
        """(B, L, C) → (B, L, C), in float32 also under autocast."""
        delta = F.linear(x, self.delta.weight)  # the scan adds the bias, in float32, before its softplus
        B, C = self.bc(x).chunk(2, dim=-1)
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        y = selective_scan(
            x.mT,
            delta.mT,
            A,
            B.mT,
            C.mT,
            self.D,
            delta_bias=self.delta.bias,
            delta_softplus=True,
            discretization=self.discretization,
        )
        return y.mT  # type: ignore[union-attr]


def row_major(x: Tensor) -> Tensor:
    """(B, H, W, C) → (B, H·W, C), row after row."""
    return x.flatten(1, 2)


def column_major(x: Tensor) -> Tensor:
    """(B, H, W, C) → (B, H·W, C), column after column."""
    return x.transpose(1, 2).flatten(1, 2)


def from_row_major(y: Tensor, height: int, width: int) -> Tensor:
    """(B, H·W, C) → (B, H, W, C), the inverse of `row_major`."""
    return y.unflatten(1, (height, width))


def from_column_major(y: Tensor, height: int, width: int) -> Tensor:
    """(B, H·W, C) → (B, H, W, C), the inverse of `column_major`."""
    return y.unflatten(1, (width, height)).transpose(1, 2)


class BFSS(nn.Module):
    """Bidirectional fusion selective scan: a row-major and a column-major S6 with their own weights, then fused.

    Args:
        channels: Channels in and out.
        d_state: States a channel.
        discretization: "zoh" or "mamba".
    """

    def __init__(self, channels: int, d_state: int = 32, discretization: str = "zoh") -> None:
        super().__init__()
        self.scans = nn.ModuleList(S6(channels, d_state, discretization) for _ in range(2))
        self.fusion = nn.Sequential(
            nn.LayerNorm(2 * channels), nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        _, height, width, _ = x.shape
        rows = from_row_major(self.scans[0](row_major(x)), height, width)
        columns = from_column_major(self.scans[1](column_major(x)), height, width)
        return self.fusion(torch.cat([rows, columns], dim=-1))


class SS2D(nn.Module):
    """Four-directional selective scan (ablation): row-major, column-major and the reverse of both, summed.

    Args:
        channels: Channels in and out.
        d_state: States a channel.
        discretization: "zoh" or "mamba".
    """

    def __init__(self, channels: int, d_state: int = 32, discretization: str = "zoh") -> None:
        super().__init__()
        self.scans = nn.ModuleList(S6(channels, d_state, discretization) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        _, height, width, _ = x.shape
        rows, columns = row_major(x), column_major(x)
        by_rows = self.scans[0](rows) + self.scans[2](rows.flip(1)).flip(1)
        by_columns = self.scans[1](columns) + self.scans[3](columns.flip(1)).flip(1)
        return from_row_major(by_rows, height, width) + from_column_major(by_columns, height, width)


SCANS = {"bfss": BFSS, "ss2d": SS2D}

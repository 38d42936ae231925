"""S6 scans over an image: one direction, the paper's fusion of two (BFSS), and the sum of four (SS2D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_mamba_mis.ops import Deferred, deferred, pixelwise, s6


class S6(nn.Module):
    """Selective state space layer over an image's pixels, row after row (Mamba's S6, by default with the exact hold).

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
        """(B, H, W, C) → (B, H, W, C), scanned in float32 also under autocast."""
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        return s6(
            x,
            self.delta.weight,
            self.delta.bias,
            self.bc.weight,
            A,
            self.D,
            discretization=self.discretization,
        )


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
        return pixelwise([self.deferred(x)])

    def deferred(self, x: Tensor) -> Deferred:
        """As `forward`, but its fusion is left to be computed with the layers that take it."""
        rows = self.scans[0](x)
        columns = self.scans[1](x.transpose(1, 2)).transpose(1, 2)
        return deferred([rows, columns], *self.fusion)


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
        columns = x.transpose(1, 2)
        by_rows = self.scans[0](x) + self.scans[2](x.flip(1, 2)).flip(1, 2)
        by_columns = self.scans[1](columns) + self.scans[3](columns.flip(1, 2)).flip(1, 2)
        return by_rows + by_columns.transpose(1, 2)

    def deferred(self, x: Tensor) -> Tensor:
        """As `forward`: there is nothing to leave."""
        return self.forward(x)


SCANS: dict[str, type[BFSS] | type[SS2D]] = {"bfss": BFSS, "ss2d": SS2D}

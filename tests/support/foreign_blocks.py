"""Short versions of blocks from other Mamba projects, around a `selective_scan_fn` with mamba_ssm's arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MambaBlock(nn.Module):
    """A Mamba layer on flattened features, as in U-Mamba: LayerNorm, scan with gate z, residual connection."""

    def __init__(self, channels: int, scan: Callable, states: int = 16, expand: int = 2) -> None:
        super().__init__()
        inner, rank = expand * channels, max(1, channels // 16)
        self.scan, self.rank, self.states = scan, rank, states
        self.norm = nn.LayerNorm(channels)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, H, W) to the same shape."""
        tokens = features.flatten(2).mT
        x, z = self.in_proj(self.norm(tokens)).mT.chunk(2, dim=1)
        x = F.silu(self.conv1d(x)[..., : x.shape[-1]])
        dt, B, C = self.x_proj(x.mT).split([self.rank, self.states, self.states], dim=-1)
        y = self.scan(
            x,
            (dt @ self.dt_proj.weight.mT).mT,
            -self.A_log.exp(),
            B.mT,
            C.mT,
            self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
        )
        return (tokens + self.out_proj(y.mT)).mT.view_as(features)


class CrossScanBlock(nn.Module):
    """Four directions as four groups of one scan, as in VMamba: rows and columns, each forward and reversed."""

    def __init__(self, channels: int, scan: Callable, states: int = 4) -> None:
        super().__init__()
        self.scan, self.states, self.rank = scan, states, max(1, channels // 16)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.x_proj = nn.Parameter(torch.randn(4, self.rank + 2 * states, channels) * channels**-0.5)
        self.dt_proj = nn.Parameter(torch.randn(4, channels, self.rank) * self.rank**-0.5)
        self.dt_bias = nn.Parameter(torch.linspace(-4, -1, 4 * channels))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(4 * channels, 1))
        self.D = nn.Parameter(torch.ones(4 * channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, H, W) to the same shape."""
        x = F.silu(self.conv(features))
        two = torch.stack([x.flatten(2), x.mT.flatten(2)], dim=1)
        u = torch.cat([two, two.flip(-1)], dim=1)  # (batch, 4, channels, L)
        projected = torch.einsum("bgcl,grc->bgrl", u, self.x_proj)
        dt, B, C = projected.split([self.rank, self.states, self.states], dim=2)
        delta = torch.einsum("bgrl,gcr->bgcl", dt, self.dt_proj)
        y = self.scan(
            u.flatten(1, 2),
            delta.flatten(1, 2),
            -self.A_log.exp(),
            B,
            C,
            self.D,
            delta_bias=self.dt_bias,
            delta_softplus=True,
        ).view_as(u)
        rows, columns = (y[:, :2] + y[:, 2:].flip(-1)).unbind(1)
        merged = rows.view_as(features) + columns.view_as(features.mT).mT
        return features + self.norm(merged.movedim(1, -1)).movedim(-1, 1)

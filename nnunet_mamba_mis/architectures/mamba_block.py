"""Mamba's block, computed with this package's scan."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.ops import selective_scan
from nnunet_mamba_mis.ops.causal_conv import causal_conv_silu
from nnunet_mamba_mis.ops.modules import has_ordinary_weights

# Mamba draws its initial step sizes log-uniformly from this range
STEP_SIZES = (1e-3, 1e-1)


class Mamba(nn.Module):
    """The Mamba block (Gu and Dao 2023, section 3.4 and figure 3), on any device.

    A projection yields features and a gate, each `expand` times as wide as the input. The features pass through a
    causal depthwise convolution, SiLU and a selective scan, are multiplied by SiLU of the gate, and are projected back.
    Parameters have the names and shapes of mamba_ssm's `Mamba`, so its weights load.

    Args:
        d_model: Channels in and out.
        d_state: States per channel.
        d_conv: Width of the convolution.
        expand: Inner channels per outer channel.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, self.d_state, self.dt_rank = expand * d_model, d_state, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self._initialize_step_sizes()

    @torch.no_grad()
    def _initialize_step_sizes(self) -> None:
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = (math.log(step) for step in STEP_SIZES)
        steps = torch.exp(torch.empty_like(self.dt_proj.bias).uniform_(low, high))
        # softplus(bias) = step
        self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d_model) → (B, L, d_model), scanned along L from a zero state."""
        u, gate = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        if has_ordinary_weights(self.conv1d, nn.Conv1d):
            u = causal_conv_silu(u, self.conv1d.weight, self.conv1d.bias)  # type: ignore[arg-type]
        else:
            u = F.silu(self.conv1d(F.pad(u, (self.conv1d.kernel_size[0] - 1, 0))))
        delta, B, C = self.x_proj(u.transpose(1, 2)).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if has_ordinary_weights(self.dt_proj, nn.Linear):
            # the scan adds the bias, in float32, before its softplus
            delta, delta_bias = F.linear(delta, self.dt_proj.weight), self.dt_proj.bias
        else:
            delta, delta_bias = self.dt_proj(delta), None
        y = selective_scan(
            u,
            delta.transpose(1, 2),
            -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            gate,
            delta_bias,
            delta_softplus=True,
            discretization="mamba",
        )
        return self.out_proj(y.transpose(1, 2))  # type: ignore[union-attr]

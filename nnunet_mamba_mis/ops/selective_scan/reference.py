"""The selective scan as a loop over positions: the definition that every fast path is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.backend import Backend
from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs


def zero_order_hold(x: Tensor) -> Tensor:
    """Return (eˣ − 1)/x, with limit 1 at 0; the value and its derivatives are exact up to rounding."""
    small = x.abs() < 0.1
    series = 1 + x / 11
    for k in range(10, 1, -1):
        series = 1 + x / k * series
    safe = torch.where(small, 1.0, x)  # keeps 0/0 out of the gradient
    return torch.where(small, series, torch.expm1(safe) / safe)


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    discretization: str = "mamba",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan as a loop over positions; arguments and result are those of `selective_scan`.

    h_t = e^{ΔA} h_{t−1} + w_t B_t u_t and y_t = ⟨C_t, h_t⟩ + D u_t; w is (e^{ΔA} − 1)/A for "zoh" and Δ for "mamba".
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    batch, channels, length = u.shape
    x, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    # one B and C for each channel: channel d belongs to group d // (channels / groups)
    B, C = (t[:, None] if t.dim() == 3 else t for t in (B, C))
    B, C = (t.repeat_interleave(channels // t.shape[1], dim=1) for t in (B, C))

    h = x.new_zeros(batch, channels, A.shape[1])
    y = []
    for t in range(length):
        step = delta[:, :, t, None]
        weight = step * zero_order_hold(step * A) if discretization == "zoh" else step
        h = (step * A).exp() * h + weight * B[..., t] * x[:, :, t, None]
        y.append((h * C[..., t]).sum(-1))
    out = torch.stack(y, dim=-1)
    if D is not None:
        out = out + D.to(dtype)[:, None] * x
    if z is not None:
        out = out * F.silu(z.to(dtype))
    out = out.to(u.dtype)
    return (out, h) if return_last_state else out


class ReferenceBackend(Backend):
    """Backend "reference"."""

    name = "reference"

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Implement `Backend.scan`."""
        x = inputs.over_one_axis()
        return selective_scan_reference(  # type: ignore[return-value]
            *x[:8], x.delta_softplus, return_last_state=True, discretization=x.discretization
        )

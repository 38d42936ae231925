"""Muon for convolutions, and AdamW for all other parameters.

torch's own Muon (from version 2.9) accepts matrices only, and nnU-Net's trainer has one optimizer for all parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from nnunet_mamba_mis.trainers.adamw import stay_fused

MOMENTUM = 0.95
# coefficients of the polynomial in odd powers up to the fifth, and how often it is applied (Jordan et al. 2024)
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# key in a parameter group that chooses the optimizer of the group
_MUON = "muon"


class MuonAdamW(AdamW):
    """Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers") in groups with `muon=True`, AdamW in others.

    Muon treats a kernel as a matrix with one row for each index of the kernel's first dimension. A step replaces the
    momentum, as such a matrix, by an orthogonal matrix close to it, so that all directions get steps of about the same
    size. The factor 0.2 √max(rows, columns) gives these steps about the root mean square of AdamW's steps (Liu et al.
    2025, "Muon is scalable for LLM training", section 2.2), so both optimizers share learning rate and weight decay.

    Args:
        groups: Parameter groups; those without `muon` get AdamW.
        lr: Learning rate.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__([{_MUON: False, **group} for group in groups], lr=lr, fused=True)
        self.defaults[_MUON] = False  # so that checkpoints without it are refused
        stay_fused(self)
        # otherwise a gradient scaler would call `step` even for gradients that are not finite
        self._step_supports_amp_scaling = False

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = _of_adamw(groups)
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group[_MUON]:
                self._step_muon(group)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state; hide Muon's groups from AdamW, which expects its own values for each parameter."""
        super().__setstate__({**state, "param_groups": _of_adamw(state["param_groups"])})
        self.param_groups = state["param_groups"]

    @torch.no_grad()
    def _step_muon(self, group: dict[str, Any]) -> None:
        # matrices of one shape are orthogonalized together
        by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.flatten(1).shape].append(parameter)
        for shape, parameters in by_shape.items():
            directions = torch.stack([self._momentum(parameter).flatten(1) for parameter in parameters])
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            for parameter, direction in zip(parameters, orthogonalized(directions), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction.reshape(parameter.shape), alpha=size)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Update a parameter's momentum, and return its look-ahead (Nesterov)."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].mul_(MOMENTUM).add_(parameter.grad)
        return parameter.grad.add(momentum, alpha=MOMENTUM)  # type: ignore[union-attr]


def _of_adamw(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if not group.get(_MUON)]


def orthogonalized(x: Tensor) -> Tensor:
    """Return matrices with the singular vectors of x and singular values of about 1 (0.7 to 1.2).

    A Newton-Schulz iteration: X ← aX + b(XXᵀ)X + c(XXᵀ)²X. It iterates on XXᵀ and on the product of the factors, which
    are smaller than X.

    Args:
        x: (batch, rows, columns). Singular values below about a thousandth of the norm stay smaller.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonalized(x.mT).mT
    # the squares of tiny entries underflow, so the norm could be 0
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    gram = x @ x.mT
    linear, cubic, quintic = POLYNOMIAL
    product: Tensor | None = None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        factor.diagonal(dim1=-2, dim2=-1).add_(linear)
        product = factor if product is None else factor @ product
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    return product @ x  # type: ignore[operator]


def dense_kernels(network: nn.Module) -> list[Tensor]:
    """Return the kernels that Muon trains: larger than one pixel, and with several channels in and out."""
    return [
        module.weight
        for module in network.modules()
        if isinstance(module, _CONVOLUTIONS)
        and module.groups == 1
        and max(module.kernel_size) > 1
        and min(module.in_channels, module.out_channels) > 1
    ]

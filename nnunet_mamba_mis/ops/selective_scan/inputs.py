"""Arguments of a scan, checked once, in the one form that all backends take."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

DISCRETIZATIONS = ("zoh", "mamba")


class ScanInputs(NamedTuple):
    """Arguments of a scan; `ScanInputs.checked` makes them, so that backends can trust them.

    Positions have two axes and are scanned along W, then H; L positions are one row of them. B and C have a group axis.
    """

    u: Tensor  # (batch, D, H, W)
    delta: Tensor  # (batch, D, H, W)
    A: Tensor  # (D, N)
    B: Tensor  # (batch, G, N, H, W)
    C: Tensor  # (batch, G, N, H, W)
    D: Tensor | None  # (D,)
    z: Tensor | None  # (batch, D, H, W)
    delta_bias: Tensor | None  # (D,)
    delta_softplus: bool
    discretization: str

    @classmethod
    def checked(
        cls,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        discretization: str,
    ) -> ScanInputs:
        """Arguments as `selective_scan` has them.

        Raises:
            ValueError: A shape, type, device or the discretization is wrong.
        """
        check_discretization(discretization)
        _check_tensors(u, delta, A, B, C, D, z, delta_bias)
        B, C = (t.unsqueeze(1) if t.dim() == u.dim() else t for t in (B, C))
        if u.dim() == 3:
            u, delta, B, C = (t.unsqueeze(-2) for t in (u, delta, B, C))
            z = None if z is None else z.unsqueeze(-2)
        return cls(u, delta, A, B, C, D, z, delta_bias, delta_softplus, discretization)

    def over_one_axis(self) -> ScanInputs:
        """The same with L = H · W positions on one axis; copies where strides require it."""
        u, delta, B, C = (t.flatten(-2) for t in (self.u, self.delta, self.B, self.C))
        z = None if self.z is None else self.z.flatten(-2)
        return ScanInputs(u, delta, self.A, B, C, self.D, z, self.delta_bias, self.delta_softplus, self.discretization)


def check_discretization(name: str) -> None:
    """Raise a ValueError unless it is one of `DISCRETIZATIONS`."""
    if name not in DISCRETIZATIONS:
        raise ValueError(f"discretization {name!r} is not one of {', '.join(map(repr, DISCRETIZATIONS))}")


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise a ValueError unless a tensor is real and has this shape and device."""
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {shape}, not {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be real floating point, not {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, not on {tensor.device}")


def _check_tensors(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.dim() not in (3, 4) or A.dim() != 2 or 0 in u.shape or 0 in A.shape:
        raise ValueError(
            f"u must be (batch, D, L) or (batch, D, H, W) and A (D, N), none empty, "
            f"not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    batch, channels, *positions = u.shape
    states = A.shape[1]
    for name, weights in (("B", B), ("C", C)):
        groups = (weights.shape[1],) if weights.dim() == u.dim() + 1 else ()
        if weights.shape != (batch, *groups, states, *positions) or 0 in groups or channels % math.prod(groups):
            raise ValueError(
                f"{name} must be (batch, N, L) or (batch, G, N, L) with batch {batch}, N {states}, "
                f"L {' × '.join(map(str, positions))} and a G that divides D = {channels}, not {tuple(weights.shape)}"
            )
    if B.shape != C.shape:
        raise ValueError(f"B and C must have the same groups, not {tuple(B.shape)} and {tuple(C.shape)}")
    for name, tensor, shape in (
        ("u", u, u.shape),
        ("delta", delta, u.shape),
        ("A", A, (channels, states)),
        ("B", B, B.shape),
        ("C", C, C.shape),
        ("D", D, (channels,)),
        ("z", z, u.shape),
        ("delta_bias", delta_bias, (channels,)),
    ):
        if tensor is not None:
            check_tensor(name, tensor, tuple(shape), u.device)

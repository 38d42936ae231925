"""Check the arguments of a scan once, and bring them into the form that all backends take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

DISCRETIZATIONS = ("zoh", "mamba")


class ScanInputs(NamedTuple):
    """The arguments of a scan, which `checked` validates for backends.

    Checked arguments have two axes of positions, scanned along W, then H; L positions form a single row. B and C have a
    group axis.
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

    def checked(self) -> ScanInputs:
        """Check arguments of `selective_scan`, and return them in the form that backends take.

        Raises:
            ValueError: A shape, dtype, device or the discretization is wrong.
        """
        check_discretization(self.discretization)
        self.check_tensors()
        B, C = (t.unsqueeze(1) if t.dim() == self.u.dim() else t for t in (self.B, self.C))
        grouped = self._replace(B=B, C=C)
        return grouped if self.u.dim() == 4 else grouped._with_positions(lambda t: t.unsqueeze(-2))

    def over_one_axis(self) -> ScanInputs:
        """Return the arguments with one axis of L = H · W positions, copied only if strides require it."""
        return self._with_positions(lambda t: t.flatten(-2))

    def _with_positions(self, change: Callable[[Tensor], Tensor]) -> ScanInputs:
        """Return the arguments with `change` applied to every tensor that has positions."""
        u, delta, B, C = (change(t) for t in (self.u, self.delta, self.B, self.C))
        return self._replace(u=u, delta=delta, B=B, C=C, z=None if self.z is None else change(self.z))

    def check_tensors(self, dtype: torch.dtype | None = None) -> None:
        """Raise a ValueError that names the first tensor whose shape, layout, device or dtype does not fit.

        Args:
            dtype: dtype that all tensors must have; None for any real dtype.
        """
        u, delta, A, B, C, D, z, delta_bias, *_ = self
        if u.dim() not in (3, 4) or A.dim() != 2 or 0 in u.shape or 0 in A.shape:
            raise ValueError(
                "u must be (batch, D, L) or (batch, D, H, W), and A must be (D, N), without empty axes, "
                f"not {tuple(u.shape)} and {tuple(A.shape)}"
            )
        batch, channels, *positions = u.shape
        states = A.shape[1]
        for name, weights in (("B", B), ("C", C)):
            groups = (weights.shape[1],) if weights.dim() == u.dim() + 1 else ()
            if weights.shape != (batch, *groups, states, *positions) or 0 in groups or channels % math.prod(groups):
                raise ValueError(
                    f"{name} must be (batch, N, L) or (batch, G, N, L) with batch {batch}, N {states}, "
                    f"L {' × '.join(map(str, positions))} and a G that divides D = {channels}, "
                    f"not {tuple(weights.shape)}"
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
                check_tensor(name, tensor, tuple(shape), u.device, dtype)


def check_discretization(name: str) -> None:
    """Raise a ValueError unless `name` is one of `DISCRETIZATIONS`."""
    if name not in DISCRETIZATIONS:
        raise ValueError(f"discretization {name!r} is not one of {', '.join(map(repr, DISCRETIZATIONS))}")


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """Raise a ValueError unless a tensor is real and strided and has the given shape, device and dtype.

    Args:
        name: Name of the tensor in the message.
        tensor: Tensor to check.
        shape: Required shape.
        device: Required device.
        dtype: Required dtype; None for any real dtype.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, not {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be of a real floating-point dtype, not {tensor.dtype}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, not {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, not on {tensor.device}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} must have layout {torch.strided}, not {tensor.layout}: call .to_dense()")

"""What a backend of the selective scan is."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs


class Backend:
    """One implementation of the scan. A subclass with `name` and `scan`, and a line in `registry`, is a new one.

    Reasons are texts for people, or None if nothing stands in the way.
    """

    name: ClassVar[str]

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Outputs in u's shape, or with L = H · W positions on one axis, in any real type, and the last state."""
        raise NotImplementedError

    def scan_projected(
        self,
        u: Tensor,
        delta_weight: Tensor,
        delta_bias: Tensor,
        bc_weight: Tensor,
        A: Tensor,
        D: Tensor,
        discretization: str,
    ) -> Tensor:
        """Outputs (batch, D, H, W) of `s6` for u (batch, D, H, W); a backend may override it to project on the way."""
        x = u.movedim(1, -1)
        delta = F.linear(x, delta_weight).movedim(-1, 1)
        B, C = F.linear(x, bc_weight).movedim(-1, 1).unsqueeze(1).chunk(2, dim=2)
        # the scan adds the bias, in float32, before its softplus
        y, _ = self.scan(ScanInputs(u, delta, A, B, C, D, None, delta_bias, True, discretization))
        return y.view(u.shape)

    def device(self) -> str | None:
        """Type of the tensors that it takes; None for any."""
        return None

    def why_unavailable(self) -> str | None:
        """Why it does not work on this machine."""
        return None

    def why_unsuitable(self, u: Tensor, discretization: str) -> str | None:
        """Why it cannot scan this u, which is on its device."""
        return None

    def is_emulated(self) -> bool:
        """Whether it runs in an emulator, which is slower than any other backend."""
        return False

"""The interface of a backend of the selective scan."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs


class Backend:
    """An implementation of the scan. A new backend needs a subclass with `name` and `scan`, and an entry in `registry`.

    Methods named `why_...` return a reason for the user, or None if nothing is wrong.
    """

    name: ClassVar[str]

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Return the outputs and the last state.

        The outputs have any real dtype, and either u's shape or a single axis of H · W positions.
        """
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
        """Return outputs of `s6` for u, both (batch, D, H, W); a backend can override this to fuse the projections."""
        x = u.movedim(1, -1)
        delta = F.linear(x, delta_weight).movedim(-1, 1)
        B, C = F.linear(x, bc_weight).movedim(-1, 1).unsqueeze(1).chunk(2, dim=2)
        # the scan adds the bias, in float32, before its softplus
        y, _ = self.scan(ScanInputs(u, delta, A, B, C, D, None, delta_bias, True, discretization))
        return y.view(u.shape)

    def device(self) -> str | None:
        """Return the device type that the backend needs, or None for any."""
        return None

    def why_unavailable(self) -> str | None:
        """Return why the backend does not work on this machine, or None."""
        return None

    def why_unsuitable(self, u: Tensor, discretization: str) -> str | None:
        """Return why the backend cannot scan u, or None; u is on the device that the backend needs."""
        return None

    def is_emulated(self) -> bool:
        """Return whether the backend runs in an emulator, which is slower than any other backend."""
        return False

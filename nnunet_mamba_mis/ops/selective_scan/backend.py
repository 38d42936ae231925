"""What a backend of the selective scan is."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs


class Backend:
    """One implementation of the scan. A subclass with `name` and `scan`, and a line in `registry`, is a new one.

    Reasons are texts for people, or None if nothing stands in the way.
    """

    name: ClassVar[str]
    # whether `scan_projected` exists
    projects: ClassVar[bool] = False

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Outputs in u's shape, or with L = H · W positions on one axis, in any real type, and the last state."""
        raise NotImplementedError

    def scan_projected(
        self, u: Tensor, weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, discretization: str
    ) -> Tensor:
        """Outputs of a scan with softplus, whose Δ, B and C are projected from u on the way.

        Args:
            u: (batch, D, H, W).
            weight: (D + 2N, D), rows for Δ, then B, then C.
            A: (D, N).
            D: (D,).
            delta_bias: (D,).
            discretization: "zoh" or "mamba".
        """
        raise NotImplementedError

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

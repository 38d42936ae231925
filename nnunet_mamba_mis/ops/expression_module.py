"""Modules that are defined by one expression of features."""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_mamba_mis.ops.evaluator import Evaluator
from nnunet_mamba_mis.ops.expressions import Expression


class ExpressionModule(nn.Module):
    """A module that computes `expression`, whose structure depends on the module alone, not on the features."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluate = Evaluator()

    def expression(self, x: Expression) -> Expression:
        """Return `forward` as an expression, to be evaluated together with the layers around it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        return self.evaluate.of(self, self.expression, x)

"""Compute expressions: as one native operation where possible, otherwise piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunet_mamba_mis.ops.expressions import LOAD, Expression, compute
from nnunet_mamba_mis.ops.pieces import Piece, cut
from nnunet_mamba_mis.ops.pixelwise import PixelwiseEvaluator
from nnunet_mamba_mis.ops.program import Programs


class Evaluator:
    """Compute the expressions of one module, and keep a plan for each.

    Every call checks what a plan depends on, so that layers and parameters can be replaced or moved.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[list[Piece], Programs]] = {}
        self._pixelwise = PixelwiseEvaluator()

    def __reduce__(self) -> tuple[type[Evaluator], tuple[()]]:
        return Evaluator, ()  # copies and pickles of a module make their own

    def __call__(self, x: Expression) -> Tensor:
        """Return features (batch, H, W, channels)."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._by_pieces(x, cut(x.nodes, x.index))
        key = (tuple(x.nodes), x.index)
        known = self._known.get(key)
        if known is None:
            pieces = cut(x.nodes, x.index)
            known = self._known[key] = (pieces, Programs(key[0], pieces))
        pieces, programs = known
        y = programs.run(x.tensors)
        return self._by_pieces(x, pieces) if y is None else y

    def _by_pieces(self, x: Expression, pieces: list[Piece]) -> Tensor:
        values = {i: x.tensors[what] for i, (kind, _, what) in enumerate(x.nodes) if kind == LOAD}
        for piece in pieces:
            taken = tuple(values[i] for i in piece.sources)
            for i in piece.last_use_of:
                del values[i]
            if piece.steps is None:
                values[piece.node] = compute(x.nodes[piece.node], taken)
            else:
                values[piece.node] = self._pixelwise(taken, piece.steps)
        return values[x.index]

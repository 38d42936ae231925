"""Run all pieces of an expression as one native operation, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.expressions import COLUMNS, LAYER, Node
from nnunet_mamba_mis.ops.native_layers import NativeLayer, native_layer_of
from nnunet_mamba_mis.ops.pieces import Piece
from nnunet_mamba_mis.ops.program_builder import NativeProgram, build
from nnunet_mamba_mis.ops.transforms import gradients_in_torch, is_batched

_MOST_SHAPES = 16  # programs to cache for one expression


class Programs:
    """Programs for one expression, cached by the shapes, strides and dtype of its tensors and the number of threads."""

    def __init__(self, nodes: Sequence[Node], pieces: Sequence[Piece]) -> None:
        self._nodes = nodes
        self._pieces = pieces
        self._layers = [
            nodes[piece.node][2] for piece in pieces if piece.steps is None and nodes[piece.node][0] in (LAYER, COLUMNS)
        ]
        self._by_shapes: dict[Any, NativeProgram] = {}
        self._parameters: dict[Any, list[Tensor]] = {}  # by the same keys, until layers may have changed

    def run(self, tensors: Sequence[Tensor], unchanged: bool = False) -> Tensor | None:
        """Return the expression's value, or None if its pieces must be computed one by one.

        The result is None with hooks, under transforms or autocast, without native code, and for unsupported layers.

        Args:
            tensors: The features that the expression loads.
            unchanged: Whether the layers are known to be unchanged since the last run.
        """
        if not self._pieces or not native.takes(tensors) or native.is_watched(*tensors):
            return None
        if not unchanged:
            self._parameters.clear()
        key = (*((t.shape, t.stride()) for t in tensors), tensors[0].dtype, torch.get_num_threads())
        program, parameters = self._by_shapes.get(key), self._parameters.get(key)
        if program is None or parameters is None or not program.fits(parameters):
            layers = self._native_layers()
            if layers is None:
                return None
            parameters = None if program is None else program.parameters(layers)
            if program is None or parameters is None:
                program = build(self._nodes, self._pieces, tensors, layers)
                parameters = None if program is None else program.parameters(layers)
                if program is None or parameters is None:
                    return None
                if len(self._by_shapes) >= _MOST_SHAPES:
                    self._by_shapes.clear()
                self._by_shapes[key] = program
            self._parameters[key] = parameters
        if torch.is_grad_enabled():
            return _Run.apply(program, len(tensors), *tensors, *parameters)
        return program.forward(tensors, parameters, keep=False)[0]

    def _native_layers(self) -> list[NativeLayer] | None:
        layers: list[NativeLayer] = []
        for module in self._layers:
            layer = native_layer_of(module)
            if layer is None:
                return None
            layers.append(layer)
        return layers


class _Run(torch.autograd.Function):
    """Differentiate a program. PyTorch operations compute second derivatives and batched gradients."""

    @staticmethod
    def forward(ctx: Any, program: NativeProgram, count: int, *given: Tensor) -> Tensor:
        y, kept = program.forward(given[:count], given[count:], keep=True)
        ctx.program, ctx.count = program, count
        ctx.save_for_backward(*given, kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        *given, kept = ctx.saved_tensors
        program, count = ctx.program, ctx.count
        if torch.is_grad_enabled() or is_batched(grad_y):
            gradients = gradients_in_torch(lambda *t: program.in_torch(t[:count], t[count:]), given, grad_y)
        else:
            gradients = program.backward(given[:count], given[count:], kept, grad_y)
        return None, None, *gradients

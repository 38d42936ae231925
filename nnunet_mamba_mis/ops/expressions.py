"""Expressions: computations on features, recorded so that an evaluator sees them as a whole.

    x = lazy(x)
    gate, rest = x.split((3, 5))
    y = evaluate((concat(rest.then(norm, linear), gate.then(F.silu)) * x).then(out) + x)

An `Evaluator` computes an expression. The operands of an expression share one list of nodes. Each node refers to its
sources by their indices; the sources precede the node in the list.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_mamba_mis.ops.modules import is_ordinary

Layer = Callable[..., Tensor]

LOAD, PART, LAYER, COLUMNS, CONCAT, TIMES, PLUS = range(7)


# (kind, indices of the sources, value). The value of LOAD is the index of the tensor. The value of PART is the first
# channel and the channel after the last. The value of LAYER and COLUMNS is the layer. Other kinds have None.
Node = tuple[int, tuple[int, ...], Any]


def compute(node: Node, values: Sequence[Tensor]) -> Tensor:
    """Compute a node from the values of its sources, by PyTorch operations."""
    kind, _, what = node
    if kind == LAYER:
        return what(*values)
    if kind == COLUMNS:
        return what(values[0].transpose(1, 2)).transpose(1, 2)
    if kind == PART:
        return values[0][..., slice(*what)]
    if kind == CONCAT:
        return torch.cat([*values], dim=-1)
    return values[0] * values[1] if kind == TIMES else values[0] + values[1]


class _Graph:
    """Nodes and tensors that the operands of one expression share."""

    __slots__ = ("nodes", "tensors")

    def __init__(self, tensors: list[Tensor], nodes: list[Node]) -> None:
        self.tensors = tensors
        self.nodes = nodes


class Expression:
    """Features (batch, H, W, channels) to be computed."""

    __slots__ = ("graph", "index")

    def __init__(self, graph: _Graph, index: int) -> None:
        self.graph = graph
        self.index = index

    @property
    def nodes(self) -> list[Node]:
        """Return all nodes in an order in which they can be computed."""
        return self.graph.nodes

    @property
    def tensors(self) -> list[Tensor]:
        """Return the tensors that nodes of kind LOAD refer to."""
        return self.graph.tensors

    def then(self, *layers: Layer) -> Expression:
        """Apply layers in turn. Expand an `nn.Sequential` into its layers unless it has hooks or is a subclass."""
        index = self.index
        for layer in layers:
            is_chain = isinstance(layer, nn.Sequential) and is_ordinary(layer, nn.Sequential)
            for single in layer if is_chain else (layer,):  # type: ignore[union-attr]
                self.nodes.append((LAYER, (index,), single))
                index = len(self.nodes) - 1
        return Expression(self.graph, index)

    def columns(self, layer: Layer) -> Expression:
        """Apply a layer to the transposed image, and transpose its result back."""
        return self._with((COLUMNS, (self.index,), layer))

    def split(self, widths: Iterable[int]) -> list[Expression]:
        """Split the channels into parts."""
        bounds = itertools.accumulate(widths, initial=0)
        return [self._with((PART, (self.index,), part)) for part in itertools.pairwise(bounds)]

    def __mul__(self, factor: Expression) -> Expression:
        return self._joined(TIMES, factor)

    def __add__(self, term: Expression) -> Expression:
        return self._joined(PLUS, term)

    def _joined(self, kind: int, other: Expression) -> Expression:
        return self._with((kind, (self.index, self._index_of(other)), None))

    def _with(self, node: Node) -> Expression:
        self.nodes.append(node)
        return Expression(self.graph, len(self.nodes) - 1)

    def _index_of(self, other: Expression) -> int:
        """Return the index of another expression's node in this graph, after copying the other graph here if needed."""
        if other.graph is self.graph:
            return other.index
        nodes, tensors = len(self.nodes), len(self.tensors)
        self.tensors.extend(other.tensors)
        for kind, sources, what in other.nodes:
            moved = what + tensors if kind == LOAD else what
            self.nodes.append((kind, tuple(source + nodes for source in sources), moved))
        return other.index + nodes


def lazy(x: Tensor) -> Expression:
    """Start an expression from features (batch, H, W, channels) of any strides."""
    return Expression(_Graph([x], [(LOAD, (), 0)]), 0)


def apply(layer: Layer, first: Expression, *others: Expression) -> Expression:
    """Apply a layer to several features."""
    return first._with((LAYER, (first.index, *map(first._index_of, others)), layer))


def concat(a: Expression, b: Expression) -> Expression:
    """Concatenate features along the channels, a first."""
    return a._joined(CONCAT, b)

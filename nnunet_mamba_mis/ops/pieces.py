"""Split an expression into pieces: pixelwise steps that run together, and layers that need whole images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from nnunet_mamba_mis.ops import native_pixelwise, pixelwise
from nnunet_mamba_mis.ops.expressions import CONCAT, LAYER, LOAD, PLUS, TIMES, Node

_JOINS = {CONCAT: native_pixelwise.CONCAT, TIMES: native_pixelwise.TIMES, PLUS: native_pixelwise.PLUS}


class Piece(NamedTuple):
    """The computation of one node's value from the values of other nodes."""

    node: int
    sources: tuple[int, ...]
    steps: pixelwise.Steps | None  # None to run the node's own operation
    last_use_of: tuple[int, ...]  # sources that no later piece uses


def cut(nodes: Sequence[Node], root: int) -> list[Piece]:
    """Return the pieces that compute a node's value, in an order in which they can run."""
    uses = _uses(nodes, root)
    # nodes whose values are stored: the root, nodes used more than once, and results and inputs of layers that are not
    # pixelwise
    whole = {root} | {i for i, count in uses.items() if count > 1 or not _is_pixelwise(nodes[i])}
    for i in uses:
        if not _is_pixelwise(nodes[i]):
            whole.update(nodes[i][1])
    pieces: list[Piece] = []
    for i in sorted(whole):
        kind, node_sources, _ = nodes[i]
        if kind == LOAD:
            continue
        if _is_pixelwise(nodes[i]):
            sources, steps = _steps(nodes, i, whole)
            pieces.append(Piece(i, tuple(sources), tuple(steps), ()))
        else:
            pieces.append(Piece(i, node_sources, None, ()))
    return _with_last_uses(pieces)


def _uses(nodes: Sequence[Node], root: int) -> Counter[int]:
    """Count the uses of each node that the root depends on; the root itself counts as used once."""
    uses = Counter([root])
    for i in range(root, -1, -1):
        if uses[i]:
            uses.update(nodes[i][1])
    return +uses


def _is_pixelwise(node: Node) -> bool:
    kind, _, what = node
    return kind in _JOINS or (kind == LAYER and pixelwise.is_pixelwise(what))


def _steps(nodes: Sequence[Node], i: int, whole: set[int]) -> tuple[list[int], list[pixelwise.Step]]:
    """Return the nodes to load and the steps that compute node i."""
    sources: list[int] = []
    steps: list[pixelwise.Step] = []
    kind, needed, what = nodes[i]
    for source in needed:
        if source in whole:
            sources.append(source)
            steps.append(native_pixelwise.LOAD)
        else:
            more_sources, more_steps = _steps(nodes, source, whole)
            sources += more_sources
            steps += more_steps
    steps.append(_JOINS.get(kind) or what)
    return sources, steps


def _with_last_uses(pieces: list[Piece]) -> list[Piece]:
    later: set[int] = set()
    result = []
    for piece in reversed(pieces):
        result.append(piece._replace(last_use_of=tuple(set(piece.sources) - later)))
        later.update(piece.sources)
    return result[::-1]

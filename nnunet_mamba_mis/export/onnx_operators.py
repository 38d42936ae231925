"""Translate the package's operators into ONNX's for torch's exporter, so that any ONNX runtime can run the file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx_ir.passes import common as passes

import nnunet_mamba_mis.ops  # noqa: F401 (registers the operators)
from nnunet_mamba_mis.export.onnx_scan import Value, cut, join, op, scan, softplus
from nnunet_mamba_mis.ops.native_pixelwise import CONCAT, LINEAR, LOAD, NORM, PLUS, PROJECT, SILU, TIMES


def native_s6(
    u: Value, weight: Value, A: Value, D: Value, delta_bias: Value, exact: bool, keep_starts: bool
) -> tuple[Value, Value, Value]:
    """Translate `ops.selective_scan.native.native_s6`; all outputs but the first are placeholders."""
    channels, states = A.shape
    height, width = u.shape[2:]
    # cut u before projecting it, as its projections are many times larger
    x = cut(u, channels, height * width)
    ends = [0, channels, channels + states, channels + 2 * states]
    delta, B, C = (op.MatMul(op.Slice(weight, [start], [end], [0]), x) for start, end in itertools.pairwise(ends))
    delta = softplus(op.Add(delta, op.Unsqueeze(delta_bias, [1])))
    y = scan(x, delta, A, B, C, exact, channels, states, height * width)
    y = op.Add(y, op.Mul(x, op.Unsqueeze(D, [1])))
    return (join(y, channels, height, width), *_unused())


def chunked_scan(u: Value, delta: Value, A: Value, B: Value, C: Value, exact: bool) -> tuple[Value, Value, Value]:
    """Translate `ops.selective_scan.chunked.chunked_scan`, the scan without native code, for B and C with one group."""
    channels, states = A.shape
    length = u.shape[2]
    x, delta = (cut(t, channels, length) for t in (u, delta))
    B, C = (cut(op.Squeeze(t, [1]), states, length) for t in (B, C))
    y = scan(x, delta, A, B, C, exact, channels, states, length)
    return (join(y, channels, length), *_unused())


def _unused() -> tuple[Value, Value]:
    """Return placeholders for the last state and the block-start states for backward."""
    return op.Constant(value_floats=[0.0]), op.Constant(value_floats=[0.0])


def native_pixelwise(
    tensors: Sequence[Value], parameters: Sequence[Value], kinds: Sequence[int], eps: Sequence[float]
) -> Value:
    """Translate `ops.native_pixelwise.native_pixelwise`: run its steps in order on a stack."""
    loaded, layers = iter(tensors), iter(parameters)
    stack: list[Value] = []
    for kind, step_eps in zip(kinds, eps, strict=True):
        if kind == LOAD:
            stack.append(next(loaded))
        elif kind == NORM:
            stack[-1], *_ = op.LayerNormalization(stack[-1], next(layers), next(layers), epsilon=step_eps)
        elif kind in (LINEAR, PROJECT):
            stack[-1] = op.MatMul(stack[-1], op.Transpose(next(layers), perm=[1, 0]))
            if kind == LINEAR:
                stack[-1] = op.Add(stack[-1], next(layers))
        elif kind == SILU:
            stack[-1] = op.Mul(stack[-1], op.Sigmoid(stack[-1]))
        else:
            top = stack.pop()
            stack[-1] = _JOINS[kind](stack[-1], top)
    return stack.pop()


_JOINS: dict[int, Callable[[Value, Value], Value]] = {
    CONCAT: lambda a, b: op.Concat(a, b, axis=-1),
    TIMES: op.Mul,
    PLUS: op.Add,
}


def split_with_sizes(x: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    """Translate `aten.split_with_sizes` without ONNX sequences, which few runtimes support."""
    ends = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return [op.Slice(x, [start], [end], [dim]) for start, end in itertools.pairwise(ends)]


def split(x: Value, size: int, dim: int = 0) -> list[Value]:
    """Translate `aten.split` with `split_with_sizes`."""
    length = x.shape[dim]
    return split_with_sizes(x, [min(size, length - start) for start in range(0, length, size)], dim)


# only these lines refer to the package's operators by name
_OWN = torch.ops.nnunet_mamba_mis
TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    _OWN.native_s6.default: native_s6,
    _OWN.chunked_scan.default: chunked_scan,
    _OWN.native_pixelwise.default: native_pixelwise,
    torch.ops.aten.split.Tensor: split,
    torch.ops.aten.split_with_sizes.default: split_with_sizes,
}

# clean-up after torch's exporter, whose own optimizer takes minutes
SIMPLIFICATIONS = (
    passes.IdentityEliminationPass,
    passes.RemoveUnusedNodesPass,
    passes.CommonSubexpressionEliminationPass,
    passes.LiftConstantsToInitializersPass,
    passes.DeduplicateHashedInitializersPass,
    passes.ClearMetadataAndDocStringPass,
)

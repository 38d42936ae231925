"""Layers that work on every pixel on its own, written as an expression and computed at once.

    gate = lazy(x).then(norm, linear, F.silu)
    y = evaluate((concat(lazy(a), lazy(b)).then(fusion) * gate).then(linear) + lazy(x))

On a CPU pixels go through the whole expression tile by tile, in native code: what lies between is neither written to
memory nor kept for backward, which runs the layers again. Elsewhere, and for layers that the native code does not know
(subclasses, layers without a bias or with hooks, tensors to be broadcast), torch runs one after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.modules import are_ordinary_tensors, is_ordinary
from nnunet_mamba_mis.ops.native_pixelwise import (
    CONCAT,
    JOINS,
    LINEAR,
    LOAD,
    NORM,
    PLUS,
    SILU,
    TIMES,
    native_layers,
    native_pixelwise,
    run_forward,
)
from nnunet_mamba_mis.ops.native_structs import PixelLayer

Layer = Callable[[Tensor], Tensor]
# on a stack: LOAD puts the next tensor on it, CONCAT, TIMES and PLUS take two from it and layers one
Step = Layer | int


class Pixelwise:
    """Features (batch, H, W, channels) as an expression, for `Evaluator` to compute."""

    def __init__(self, tensors: tuple[Tensor, ...], steps: tuple[Step, ...]) -> None:
        self.tensors = tensors
        self.steps = steps

    def then(self, *layers: Layer) -> Pixelwise:
        """Apply layers in turn: `nn.LayerNorm` over the channels, `nn.Linear`, SiLU, and others, which torch runs.

        An `nn.Sequential` is its layers, unless it has hooks or the like.
        """
        steps: list[Layer] = []
        for layer in layers:
            steps += list(layer) if is_ordinary(layer, nn.Sequential) else [layer]
        return Pixelwise(self.tensors, (*self.steps, *steps))

    def __mul__(self, factor: Pixelwise) -> Pixelwise:
        return self._joined(factor, TIMES)

    def __add__(self, term: Pixelwise) -> Pixelwise:
        return self._joined(term, PLUS)

    def _joined(self, other: Pixelwise, step: Step) -> Pixelwise:
        return Pixelwise((*self.tensors, *other.tensors), (*self.steps, *other.steps, step))

    def by_torch(self) -> Tensor:
        """Compute it one step after the other."""
        tensors = iter(self.tensors)
        stack: list[Tensor] = []
        for step in self.steps:
            if step == LOAD:
                stack.append(next(tensors))
            elif isinstance(step, int):
                top = stack.pop()
                stack[-1] = JOINS[step](stack[-1], top)
            else:
                stack[-1] = step(stack[-1])
        return stack.pop()


def lazy(x: Tensor) -> Pixelwise:
    """Features (batch, H, W, channels), any strides, to begin an expression with."""
    return Pixelwise((x,), (LOAD,))


def concat(a: Pixelwise, b: Pixelwise) -> Pixelwise:
    """Features side by side, a's channels first."""
    return a._joined(b, CONCAT)


class Evaluator:
    """Computes the expressions of one module, and keeps a plan for each.

    What a plan depends on is checked at every call, so that layers and parameters can be replaced or moved.
    """

    def __init__(self) -> None:
        self._plans: dict[tuple[Step, ...], _Plan] = {}

    def __reduce__(self) -> tuple[type[Evaluator], tuple[()]]:
        return Evaluator, ()  # copies and pickles of a module make their own plans

    def __call__(self, x: Pixelwise) -> Tensor:
        """Features (batch, H, W, channels after the last step)."""
        if len(x.steps) == 1 or not _suits(x.tensors):
            return x.by_torch()
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        plan = None if traced else self._plans.get(x.steps)
        if plan is None or (parameters := plan.parameters(x.tensors)) is None:
            plan = _make_plan(x)
            if plan is None or (parameters := plan.parameters(x.tensors)) is None:
                return x.by_torch()
            if not traced:
                self._plans[x.steps] = plan
        # the operator itself takes as long as a small layer
        if native.needs_operator(*x.tensors, *parameters) or not all(p.is_contiguous() for p in parameters):
            return native_pixelwise(x.tensors, parameters, plan.kinds, plan.eps)
        return run_forward(x.tensors, plan.layers(x.tensors, parameters))


class _WithParameters(NamedTuple):
    """A norm or linear layer as it was when its plan was made."""

    layer: nn.LayerNorm | nn.Linear
    kind: type[nn.LayerNorm] | type[nn.Linear]
    weight: tuple[int, ...]  # shape
    eps: float | None = None  # of a norm

    def parameters(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias, or None if the layer has become another."""
        layer = self.layer
        if not is_ordinary(layer, self.kind):
            return None
        weight, bias = layer.weight, layer.bias
        fits = bias is not None and weight.shape == self.weight and bias.shape == self.weight[:1]
        if self.kind is nn.LayerNorm:
            fits = fits and layer.eps == self.eps and layer.normalized_shape == self.weight
        return (weight, bias) if fits and are_ordinary_tensors(weight, bias) else None


class _Plan:
    """What the native code needs of an expression besides its tensors."""

    def __init__(self) -> None:
        self.kinds: list[int] = []
        self.eps: list[float] = []
        self.inputs: list[int] = []  # channels of each tensor
        self.with_parameters: list[_WithParameters] = []
        self.without_parameters: list[nn.Module] = []
        self._layers: tuple[list[int], ctypes.Array[PixelLayer] | None] = ([], None)

    def add(self, kind: int, eps: float = 0.0) -> None:
        self.kinds.append(kind)
        self.eps.append(eps)

    def parameters(self, tensors: tuple[Tensor, ...]) -> list[Tensor] | None:
        """Weight and bias of each norm and linear layer; None unless the plan holds for these tensors and layers."""
        dtype, device = tensors[0].dtype, tensors[0].device
        if [t.shape[-1] for t in tensors] != self.inputs or not all(map(_is_silu, self.without_parameters)):
            return None
        parameters: list[Tensor] = []
        for layer in self.with_parameters:
            pair = layer.parameters()
            if pair is None:
                return None
            parameters += pair
        return parameters if all(p.dtype == dtype and p.device == device for p in parameters) else None

    def layers(self, tensors: tuple[Tensor, ...], parameters: list[Tensor]) -> ctypes.Array[PixelLayer]:
        """Steps as the native code takes them, made again when a parameter has moved."""
        pointers = [p.data_ptr() for p in parameters]
        known, layers = self._layers
        if layers is None or pointers != known:
            layers = native_layers(tensors, parameters, self.kinds, self.eps)
            self._layers = pointers, layers
        return layers


def _make_plan(x: Pixelwise) -> _Plan | None:
    """A plan, or None for steps that the native code does not know: it does no bounds checks."""
    plan = _Plan()
    tensors = iter(x.tensors)
    stack: list[int] = []  # channels
    for step in x.steps:
        if step == LOAD:
            stack.append(next(tensors).shape[-1])
            plan.inputs.append(stack[-1])
            plan.add(LOAD)
        elif isinstance(step, int):
            top = stack.pop()
            if step == CONCAT:
                stack[-1] = stack[-1] + top  # not in place: in a trace widths are tensors
            elif stack[-1] != top:
                return None
            plan.add(step)
        elif not _add_layer(plan, step, stack):
            return None
    return plan


def _add_layer(plan: _Plan, layer: Layer, stack: list[int]) -> bool:
    channels = stack[-1]
    if layer is F.silu:
        plan.add(SILU)
    elif _is_silu(layer):
        plan.without_parameters.append(layer)
        plan.add(SILU)
    elif is_ordinary(layer, nn.LayerNorm):
        plan.with_parameters.append(_WithParameters(layer, nn.LayerNorm, (channels,), layer.eps))
        plan.add(NORM, layer.eps)
    elif is_ordinary(layer, nn.Linear):
        stack[-1] = layer.weight.shape[0]
        plan.with_parameters.append(_WithParameters(layer, nn.Linear, (stack[-1], channels)))
        plan.add(LINEAR)
    else:
        return False
    return True


def _is_silu(layer: object) -> TypeGuard[nn.SiLU]:
    return is_ordinary(layer, nn.SiLU) and not layer.inplace


def _suits(tensors: tuple[Tensor, ...]) -> bool:
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and native.available()
        and all(
            t.dim() == 4
            and t.numel() > 0
            and t.shape[:3] == first.shape[:3]
            and t.dtype == first.dtype
            and t.device == first.device
            and t.layout is torch.strided
            for t in tensors
        )
    )

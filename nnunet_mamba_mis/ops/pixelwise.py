"""Layers that treat each pixel independently, computed together.

On a CPU, native code runs all steps tile by tile. Intermediate values are neither written to memory nor kept for
backward, which reruns the layers. On other devices, torch runs the layers one by one. Torch also runs whatever the
native code does not support: subclasses, layers with hooks, norms without parameters and tensors to be broadcast.
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
    PARAMETERS,
    PROJECT,
    SILU,
    native_layers,
    native_pixelwise,
    run_forward,
)
from nnunet_mamba_mis.ops.native_structs import PixelLayer

Layer = Callable[[Tensor], Tensor]
# Steps work on a stack. LOAD pushes the next tensor. CONCAT, TIMES and PLUS pop two entries and push one result. Layers
# replace the top entry by their result.
Step = Layer | int
Steps = tuple[Step, ...]


def by_torch(tensors: tuple[Tensor, ...], steps: Steps) -> Tensor:
    """Compute the steps one by one."""
    loaded = iter(tensors)
    stack: list[Tensor] = []
    for step in steps:
        if step == LOAD:
            stack.append(next(loaded))
        elif isinstance(step, int):
            top = stack.pop()
            stack[-1] = JOINS[step](stack[-1], top)
        else:
            stack[-1] = step(stack[-1])
    return stack.pop()


class PixelwiseEvaluator:
    """Compute steps, and cache a plan for each sequence of steps.

    Every call checks what a plan depends on, so that layers and parameters can be replaced or moved.
    """

    def __init__(self) -> None:
        self._plans: dict[Steps, PixelPlan] = {}

    def __call__(self, tensors: tuple[Tensor, ...], steps: Steps) -> Tensor:
        """Return features (batch, H, W, channels after the last step)."""
        if not native.takes(tensors) or any(t.shape[:3] != tensors[0].shape[:3] for t in tensors):
            return by_torch(tensors, steps)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        widths = [t.shape[-1] for t in tensors]
        plan = None if traced else self._plans.get(steps)
        parameters = None if plan is None or plan.inputs != widths else _fitting_parameters(plan, tensors[0])
        if plan is None or parameters is None:
            plan = make_plan(widths, steps)
            parameters = None if plan is None else _fitting_parameters(plan, tensors[0])
            if plan is None or parameters is None:
                return by_torch(tensors, steps)
            if traced and not parameters:  # AOTInductor would pass None instead of the empty list
                return by_torch(tensors, steps)
            if not traced:
                self._plans[steps] = plan
        # calling the operator takes as long as computing a small layer
        if native.needs_operator(*tensors, *parameters) or not all(p.is_contiguous() for p in parameters):
            return native_pixelwise(tensors, parameters, plan.kinds, plan.eps)
        return run_forward(tensors, plan.layers(tensors, parameters))


class _WithParameters(NamedTuple):
    """A norm or linear layer as it was when its plan was made."""

    layer: nn.LayerNorm | nn.Linear
    step: int
    weight: tuple[int, ...]  # shape
    eps: float | None = None  # of a norm

    def parameters(self) -> list[Tensor] | None:
        """Return the weight and any bias, or None if the layer has changed. Shapes are not checked."""
        layer = self.layer
        if not is_ordinary(layer, nn.LayerNorm if self.step == NORM else nn.Linear):
            return None
        if self.step == NORM and (layer.eps != self.eps or layer.normalized_shape != self.weight):
            return None
        parameters = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        if len(parameters) != len(PARAMETERS[self.step]) or not are_ordinary_tensors(*parameters):
            return None
        return parameters

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the parameters."""
        return [self.weight, self.weight[:1]][: len(PARAMETERS[self.step])]


class PixelPlan:
    """Everything that the native code needs to run steps, except their tensors."""

    def __init__(self) -> None:
        self.kinds: list[int] = []
        self.widths: list[int] = []  # channels of each step's result
        self.eps: list[float] = []
        self.inputs: list[int] = []  # channels of each tensor
        self.with_parameters: list[_WithParameters] = []
        self.without_parameters: list[nn.Module] = []
        self._layers: tuple[list[int], ctypes.Array[PixelLayer] | None] = ([], None)

    def add(self, kind: int, eps: float = 0.0) -> None:
        """Append a step."""
        self.kinds.append(kind)
        self.eps.append(eps)

    def parameters(self) -> list[Tensor] | None:
        """Return the parameters of each norm and linear layer, or None if a layer has changed."""
        for layer in self.without_parameters:
            if not _is_silu(layer):
                return None
        parameters: list[Tensor] = []
        for with_parameters in self.with_parameters:
            given = with_parameters.parameters()
            if given is None:
                return None
            parameters += given
        return parameters

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the parameters."""
        return [shape for layer in self.with_parameters for shape in layer.shapes()]

    def layers(self, tensors: tuple[Tensor, ...], parameters: list[Tensor]) -> ctypes.Array[PixelLayer]:
        """Return structs of the steps, which are rebuilt when a parameter has moved."""
        pointers = [p.data_ptr() for p in parameters]
        known, layers = self._layers
        if layers is None or pointers != known:
            layers = native_layers(tensors, parameters, self.kinds, self.eps)
            self._layers = pointers, layers
        return layers


def _fitting_parameters(plan: PixelPlan, like: Tensor) -> list[Tensor] | None:
    """Return a plan's parameters, or None unless they have the plan's shapes and the type and device of `like`."""
    parameters = plan.parameters()
    if parameters is None or [p.shape for p in parameters] != plan.shapes():
        return None
    return parameters if all(p.dtype == like.dtype and p.device == like.device for p in parameters) else None


def make_plan(widths: list[int], steps: Steps) -> PixelPlan | None:
    """Return a plan for tensors with these channels, or None for steps that the native code does not support.

    The native code has no bounds checks, so this function checks the channels.
    """
    plan = PixelPlan()
    inputs = iter(widths)
    stack: list[int] = []  # channels
    for step in steps:
        if step == LOAD:
            stack.append(next(inputs))
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
        plan.widths.append(stack[-1])
    return plan


def _add_layer(plan: PixelPlan, layer: Layer, stack: list[int]) -> bool:
    channels = stack[-1]
    if layer is F.silu:
        plan.add(SILU)
    elif _is_silu(layer):
        plan.without_parameters.append(layer)
        plan.add(SILU)
    elif is_ordinary(layer, nn.LayerNorm):
        plan.with_parameters.append(_WithParameters(layer, NORM, (channels,), layer.eps))
        plan.add(NORM, layer.eps)
    elif is_ordinary(layer, nn.Linear):
        stack[-1] = layer.weight.shape[0]
        step = PROJECT if layer.bias is None else LINEAR
        plan.with_parameters.append(_WithParameters(layer, step, (stack[-1], channels)))
        plan.add(step)
    else:
        return False
    return True


def _is_silu(layer: object) -> TypeGuard[nn.SiLU]:
    return is_ordinary(layer, nn.SiLU) and not layer.inplace


def is_pixelwise(layer: object) -> bool:
    """Return whether a layer can be a pixelwise step."""
    return layer is F.silu or isinstance(layer, (nn.LayerNorm, nn.Linear, nn.SiLU))

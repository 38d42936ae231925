"""Layers that work on every pixel on its own, as one operation."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_mamba_mis.ops import native_library as native


class Deferred(NamedTuple):
    """What `pixelwise(inputs, *layers)` would give, left to be computed together with the layers that take it."""

    inputs: Sequence[Features]
    layers: Sequence[Layer]


class Times(NamedTuple):
    """Multiply by features of the same shape."""

    factor: Features

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * _compose(self.factor)


class Plus(NamedTuple):
    """Add features of the same shape."""

    term: Features

    def __call__(self, x: Tensor) -> Tensor:
        """Add."""
        return x + _compose(self.term)


Features = Tensor | Deferred
Layer = nn.Module | Times | Plus


def deferred(inputs: Sequence[Features], *layers: Layer) -> Deferred:
    """Features to give to `pixelwise`, or to `Times` and `Plus`, in the place of a tensor; arguments as `pixelwise`."""
    return Deferred(inputs, layers)


def pixelwise(inputs: Sequence[Features], *layers: Layer) -> Tensor:
    """Concatenate inputs along channels, then apply layers in turn.

    On a CPU pixels go through all layers tile by tile, in native code: what lies between is neither written to memory
    nor kept for backward, which runs the layers again. Elsewhere, and for layers that it does not know (subclasses,
    layers without a bias or with hooks, tensors to be broadcast), this is what it reads like.

    Args:
        inputs: Features (batch, H, W, channels), any strides.
        layers: `nn.LayerNorm` over the channels, `nn.Linear`, `nn.SiLU`, `Times`, `Plus`, and what torch runs besides.

    Returns:
        (batch, H, W, channels after the last layer).
    """
    plan = _plan(Deferred(inputs, layers))
    if plan is None:
        return _compose(Deferred(inputs, layers))
    # the operator itself takes as long as a small layer
    run = native_pixelwise if native.needs_operator(*plan.tensors, *plan.parameters) else _forward
    return run(*plan)


def _compose(features: Features) -> Tensor:
    if isinstance(features, Tensor):
        return features
    inputs = [_compose(x) for x in features.inputs]
    x = torch.cat(inputs, dim=-1) if len(inputs) > 1 else inputs[0]
    for layer in features.layers:
        x = layer(x)
    return x


LOAD, CONCAT, NORM, LINEAR, SILU, TIMES, PLUS = range(7)  # PixelLayerKind of csrc/pixelwise.h


class _Plan(NamedTuple):
    """Arguments of `native_pixelwise`."""

    tensors: list[Tensor]
    parameters: list[Tensor]
    kinds: list[int]
    eps: list[float]


class _NotNativeError(Exception):
    """Native code cannot run a layer: it reads what it is told to, whatever lies there."""


def _plan(features: Deferred) -> _Plan | None:
    plan = _Plan([], [], [], [])
    try:
        _add(features, plan)
    except _NotNativeError:
        return None
    first = plan.tensors[0]
    alike = all(t.dtype == first.dtype and t.device == first.device for t in (*plan.tensors, *plan.parameters))
    return plan if alike and len(plan.kinds) > len(plan.tensors) else None


def _add(features: Features, plan: _Plan) -> int:
    """Add the steps that leave these features on the stack; returns their channels."""
    if isinstance(features, Tensor):
        if not _suits(features) or (plan.tensors and features.shape[:3] != plan.tensors[0].shape[:3]):
            raise _NotNativeError
        plan.tensors.append(features)
        return _step(plan, LOAD, features.shape[-1])
    channels = _add(features.inputs[0], plan)
    for x in features.inputs[1:]:
        channels = _step(plan, CONCAT, channels + _add(x, plan))
    for layer in features.layers:
        channels = _add_layer(layer, channels, plan)
    return channels


def _add_layer(layer: Layer, channels: int, plan: _Plan) -> int:
    if isinstance(layer, (Times, Plus)):
        if _add(layer[0], plan) != channels:
            raise _NotNativeError
        return _step(plan, TIMES if isinstance(layer, Times) else PLUS, channels)
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise _NotNativeError
    if type(layer) is nn.SiLU:
        return _step(plan, SILU, channels)
    if type(layer) is nn.LayerNorm and layer.normalized_shape == (channels,) and layer.bias is not None:
        plan.parameters.extend((layer.weight, layer.bias))
        return _step(plan, NORM, channels, layer.eps)
    if type(layer) is nn.Linear and layer.in_features == channels and layer.bias is not None:
        plan.parameters.extend((layer.weight, layer.bias))
        return _step(plan, LINEAR, layer.out_features)
    raise _NotNativeError


def _step(plan: _Plan, kind: int, channels: int, eps: float = 0.0) -> int:
    plan.kinds.append(kind)
    plan.eps.append(eps)
    return channels


def _suits(x: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dim() == 4 and x.numel() > 0
    return on_cpu and not torch.is_autocast_enabled("cpu") and native.available()


class _Tensor(ctypes.Structure):
    """PixelTensor of csrc/pixelwise.h."""

    _fields_ = [("data", ctypes.c_void_p), ("channels", ctypes.c_int64), ("strides", ctypes.c_int64 * 4)]


class _Layer(ctypes.Structure):
    """PixelLayer of csrc/pixelwise.h."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("channels", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "grad_weight", "grad_bias")),
        ("eps", ctypes.c_double),
    ]


class _Problem(ctypes.Structure):
    """PixelProblem of csrc/pixelwise.h."""

    _fields_ = [
        ("threads", native.Threads),
        ("is_double", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "layers")),
        ("tensor", ctypes.POINTER(_Tensor)),
        ("grad", ctypes.POINTER(_Tensor)),
        ("layer", ctypes.POINTER(_Layer)),
        ("y", _Tensor),
    ]


@torch.library.custom_op("nnunet_mamba_mis::native_pixelwise", mutates_args=(), device_types="cpu")
def native_pixelwise(
    tensors: Sequence[Tensor], parameters: Sequence[Tensor], kinds: Sequence[int], eps: Sequence[float]
) -> Tensor:
    """Run pixelwise layers natively.

    Args:
        tensors: (batch, H, W, channels) each, in the order in which they are loaded.
        parameters: Weight and bias of each norm and linear layer.
        kinds: Steps on a stack, as PixelLayerKind of csrc/pixelwise.h numbers them.
        eps: For each step, what a norm adds to the variance.
    """
    return _forward(tensors, parameters, kinds, eps)


def _forward(tensors, parameters, kinds, eps: Sequence[float]) -> Tensor:
    y = _empty_result(tensors, parameters, kinds)
    _run("forward", tensors, parameters, kinds, eps, y)
    return y


@native_pixelwise.register_fake
def _(tensors, parameters, kinds, eps):
    return _empty_result(tensors, parameters, kinds)


@torch.library.custom_op("nnunet_mamba_mis::native_pixelwise_backward", mutates_args=(), device_types="cpu")
def native_pixelwise_backward(
    grad_y: Tensor,
    tensors: Sequence[Tensor],
    parameters: Sequence[Tensor],
    kinds: Sequence[int],
    eps: Sequence[float],
) -> list[Tensor]:
    """Gradients of `native_pixelwise` with respect to its tensors, then its parameters."""
    grads = _empty_gradients(tensors, parameters)
    _run("backward", tensors, parameters, kinds, eps, grad_y, grads)
    return grads


@native_pixelwise_backward.register_fake
def _(grad_y, tensors, parameters, kinds, eps):
    return _empty_gradients(tensors, parameters)


def _setup_context(ctx, inputs, output) -> None:
    tensors, parameters, *ctx.options = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *parameters)


def _autograd(ctx, grad_y):
    tensors, parameters = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    grads = native_pixelwise_backward(grad_y, tensors, parameters, *ctx.options)
    return grads[: ctx.count], grads[ctx.count :], None, None


native_pixelwise.register_autograd(_autograd, setup_context=_setup_context)


def _empty_result(tensors, parameters, kinds) -> Tensor:
    return tensors[0].new_empty(*tensors[0].shape[:3], _channels(tensors, parameters, kinds)[-1])


def _empty_gradients(tensors, parameters) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (*tensors, *parameters)]


def _channels(tensors, parameters, kinds) -> list[int]:
    """Channels of each step's result."""
    loaded, weights = iter(tensors), iter(parameters[::2])
    stack: list[int] = []
    result = []
    for kind in kinds:
        if kind == LOAD:
            stack.append(next(loaded).shape[-1])
        elif kind in (NORM, LINEAR):
            stack[-1] = next(weights).shape[0]
        elif kind in (CONCAT, TIMES, PLUS):
            top = stack.pop()
            stack[-1] += top if kind == CONCAT else 0
        result.append(stack[-1])
    return result


def _run(direction: str, tensors, parameters, kinds, eps: Sequence[float], y: Tensor, grads=()) -> None:
    contiguous = [p.contiguous() for p in parameters]
    pointers = iter([(w.data_ptr(), b.data_ptr()) for w, b in zip(contiguous[::2], contiguous[1::2], strict=True)])
    grad_parameters = grads[len(tensors) :]
    grad_pointers = iter([g.data_ptr() for g in grad_parameters])
    layers = (_Layer * len(kinds))()
    widths = _channels(tensors, parameters, kinds)
    for layer, kind, channels, layer_eps in zip(layers, kinds, widths, eps, strict=True):
        layer.kind, layer.channels, layer.eps = kind, channels, layer_eps
        if kind in (NORM, LINEAR):
            layer.weight, layer.bias = next(pointers)
            if grads:
                layer.grad_weight, layer.grad_bias = next(grad_pointers), next(grad_pointers)
    batch, height, width, _ = y.shape
    problem = _Problem(
        native.threads(),
        y.dtype == torch.float64,
        batch,
        height,
        width,
        len(kinds),
        (_Tensor * len(tensors))(*map(_as_tensor, tensors)),
        (_Tensor * len(tensors))(*map(_as_tensor, grads[: len(tensors)])),
        layers,
        _as_tensor(y),
    )
    native.run(f"pixelwise_{direction}", problem)


def _as_tensor(t: Tensor) -> _Tensor:
    return _Tensor(t.data_ptr(), t.shape[-1], t.stride())

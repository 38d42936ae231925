"""Layers that work on every pixel on its own as one operator of torch, in native code (csrc/pixelwise.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.native_structs import PixelLayer, PixelProblem, PixelTensor

LOAD, CONCAT, NORM, LINEAR, SILU, TIMES, PLUS = range(7)  # PixelLayerKind of csrc/pixelwise.h


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
    parameters = [p.contiguous() for p in parameters]
    return run_forward(tensors, native_layers(tensors, parameters, kinds, eps))


@native_pixelwise.register_fake
def _(tensors, parameters, kinds, eps):
    return _empty_result(tensors, _widths(tensors, parameters, kinds)[-1])


@torch.library.custom_op("nnunet_mamba_mis::native_pixelwise_backward", mutates_args=(), device_types="cpu")
def native_pixelwise_backward(
    grad_y: Tensor, tensors: Sequence[Tensor], parameters: Sequence[Tensor], kinds: Sequence[int], eps: Sequence[float]
) -> list[Tensor]:
    """Gradients of `native_pixelwise` with respect to its tensors, then its parameters."""
    parameters = [p.contiguous() for p in parameters]
    grads = _empty_gradients(tensors, parameters)
    layers = native_layers(tensors, parameters, kinds, eps, grads[len(tensors) :])
    _run("backward", tensors, layers, grad_y, grads[: len(tensors)])
    return grads


@native_pixelwise_backward.register_fake
def _(grad_y, tensors, parameters, kinds, eps):
    return _empty_gradients(tensors, parameters)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, parameters, *ctx.options = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *parameters)


def _autograd(ctx, grad_y):
    tensors, parameters = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    grads = native_pixelwise_backward(grad_y, tensors, parameters, *ctx.options)
    return grads[: ctx.count], grads[ctx.count :], None, None


native_pixelwise.register_autograd(_autograd, setup_context=_setup_context)


def _empty_result(tensors: Sequence[Tensor], channels: int) -> Tensor:
    return tensors[0].new_empty(*tensors[0].shape[:3], channels)


def _empty_gradients(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (*tensors, *parameters)]


def _widths(tensors: Sequence[Tensor], parameters: Sequence[Tensor], kinds: Sequence[int]) -> list[int]:
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


def run_forward(tensors: Sequence[Tensor], layers: ctypes.Array[PixelLayer]) -> Tensor:
    """Result (batch, H, W, channels) of layers that `native_layers` has made."""
    y = _empty_result(tensors, layers[-1].channels)
    _run("forward", tensors, layers, y)
    return y


def native_layers(
    tensors: Sequence[Tensor],
    parameters: Sequence[Tensor],
    kinds: Sequence[int],
    eps: Sequence[float],
    grads: Sequence[Tensor] = (),
) -> ctypes.Array[PixelLayer]:
    """Steps as the native code takes them, which point to contiguous parameters and to their gradients."""
    pointers, grad_pointers = (iter([t.data_ptr() for t in owners]) for owners in (parameters, grads))
    widths = _widths(tensors, parameters, kinds)
    layers = (PixelLayer * len(kinds))()
    for layer, kind, width, layer_eps in zip(layers, kinds, widths, eps, strict=True):
        layer.kind, layer.channels, layer.eps = kind, width, layer_eps
        if kind in (NORM, LINEAR):
            layer.weight, layer.bias = next(pointers), next(pointers)
            if grads:
                layer.grad_weight, layer.grad_bias = next(grad_pointers), next(grad_pointers)
    return layers


def _run(
    direction: str,
    tensors: Sequence[Tensor],
    layers: ctypes.Array[PixelLayer],
    y: Tensor,
    grads: Sequence[Tensor] | None = None,
) -> None:
    batch, height, width, _ = y.shape
    problem = PixelProblem(
        native.threads(),
        y.dtype == torch.float64,
        batch,
        height,
        width,
        len(layers),
        _as_structs(tensors),
        None if grads is None else _as_structs(grads),
        layers,
        _as_struct(y),
    )
    native.run(f"pixelwise_{direction}", problem)


def _as_structs(tensors: Sequence[Tensor]) -> ctypes.Array[PixelTensor]:
    return (PixelTensor * len(tensors))(*map(_as_struct, tensors))


def _as_struct(t: Tensor) -> PixelTensor:
    return PixelTensor(t.data_ptr(), t.shape[-1], t.stride())

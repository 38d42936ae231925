"""Layers that treat each pixel independently, as one torch operator in native code (csrc/pixelwise.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.native_structs import PixelLayer, PixelProblem, PixelTensor
from nnunet_mamba_mis.ops.selective_scan.inputs import check_tensor
from nnunet_mamba_mis.ops.transforms import decompose_gradient, decompose_under_transforms, gradients_in_torch

LOAD, CONCAT, NORM, LINEAR, SILU, TIMES, PLUS, PROJECT = range(8)  # PixelLayerKind of csrc/pixelwise.h

# names of a step's parameters, by kind of step; a projection is a linear layer without a bias
PARAMETERS = {NORM: ("weight", "bias"), LINEAR: ("weight", "bias"), PROJECT: ("weight",)}

# steps that combine two results
JOINS: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    CONCAT: lambda a, b: torch.cat([a, b], dim=-1),
    TIMES: torch.mul,
    PLUS: torch.add,
}


@torch.library.custom_op("nnunet_mamba_mis::native_pixelwise", mutates_args=(), device_types="cpu")
def native_pixelwise(
    tensors: Sequence[Tensor], parameters: Sequence[Tensor], kinds: Sequence[int], eps: Sequence[float]
) -> Tensor:
    """Run pixelwise layers natively.

    Args:
        tensors: (batch, H, W, channels) each, in the order in which they are loaded.
        parameters: Weight and bias of each norm and linear layer, weight of each projection.
        kinds: Steps on a stack, numbered like PixelLayerKind of csrc/pixelwise.h.
        eps: One value per step. A norm adds its value to the variance; other steps ignore theirs.

    Raises:
        ValueError: Tensors, parameters and steps do not match.
    """
    parameters = [p.contiguous() for p in parameters]
    return run_forward(tensors, native_layers(tensors, parameters, kinds, eps))


@native_pixelwise.register_fake
def _(tensors, parameters, kinds, eps):
    return _empty_result(tensors, _widths(tensors, parameters, kinds, eps)[-1])


@torch.library.custom_op("nnunet_mamba_mis::native_pixelwise_backward", mutates_args=(), device_types="cpu")
def native_pixelwise_backward(
    grad_y: Tensor, tensors: Sequence[Tensor], parameters: Sequence[Tensor], kinds: Sequence[int], eps: Sequence[float]
) -> list[Tensor]:
    """Return gradients of `native_pixelwise` with respect to its tensors, then its parameters."""
    parameters = [p.contiguous() for p in parameters]
    grads = _empty_gradients(tensors, parameters)
    layers = native_layers(tensors, parameters, kinds, eps, grads[len(tensors) :])
    first = tensors[0]
    check_tensor("grad_y", grad_y, (*first.shape[:3], layers[-1].channels), first.device, first.dtype)
    _run("backward", tensors, layers, grad_y, grads[: len(tensors)])
    return grads


@native_pixelwise_backward.register_fake
def _(grad_y, tensors, parameters, kinds, eps):
    _widths(tensors, parameters, kinds, eps)
    return _empty_gradients(tensors, parameters)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, parameters, *ctx.options = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *parameters)


def _autograd(ctx, grad_y):
    saved = ctx.saved_tensors  # read once: checkpointing recomputes them on each access
    tensors, parameters = saved[: ctx.count], saved[ctx.count :]
    grads = native_pixelwise_backward(grad_y, tensors, parameters, *ctx.options)
    return grads[: ctx.count], grads[ctx.count :], None, None


native_pixelwise.register_autograd(_autograd, setup_context=_setup_context)


def pixelwise_in_torch(
    tensors: Sequence[Tensor], parameters: Sequence[Tensor], kinds: Sequence[int], eps: Sequence[float]
) -> Tensor:
    """Run the steps of `native_pixelwise` one by one in PyTorch."""
    loaded, given = iter(tensors), iter(parameters)
    stack: list[Tensor] = []
    for kind, step_eps in zip(kinds, eps, strict=True):
        if kind == LOAD:
            stack.append(next(loaded))
        elif kind in JOINS:
            top = stack.pop()
            stack[-1] = JOINS[kind](stack[-1], top)
        elif kind == SILU:
            stack[-1] = F.silu(stack[-1])
        else:
            weight = next(given)
            bias = next(given) if "bias" in PARAMETERS[kind] else None
            x = stack[-1]
            stack[-1] = (
                F.layer_norm(x, weight.shape, weight, bias, step_eps) if kind == NORM else F.linear(x, weight, bias)
            )
    return stack.pop()


def _gradients_in_torch(
    grad_y: Tensor, tensors: Sequence[Tensor], parameters: Sequence[Tensor], kinds: Sequence[int], eps: Sequence[float]
) -> list[Tensor | None]:
    count = len(tensors)

    def of_tensors(*given: Tensor) -> Tensor:
        return pixelwise_in_torch(given[:count], given[count:], kinds, eps)

    return gradients_in_torch(of_tensors, (*tensors, *parameters), grad_y)


decompose_under_transforms(native_pixelwise, pixelwise_in_torch)
decompose_gradient(native_pixelwise_backward, _gradients_in_torch)


def _empty_result(tensors: Sequence[Tensor], channels: int) -> Tensor:
    return tensors[0].new_empty(*tensors[0].shape[:3], channels)


def _empty_gradients(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (*tensors, *parameters)]


def _widths(
    tensors: Sequence[Tensor], parameters: Sequence[Tensor], kinds: Sequence[int], eps: Sequence[float]
) -> list[int]:
    """Return the channels of each step's result.

    Raises:
        ValueError: Tensors, parameters and steps do not match. The native code has no bounds checks.
    """
    _check_tensors(tensors)
    if len(eps) != len(kinds):
        raise ValueError(f"eps must have a value for each of {len(kinds)} steps, not {len(eps)}")
    steps = f"steps {list(kinds)} on {len(tensors)} tensors and {len(parameters)} parameters"
    loaded, given = iter(tensors), iter(enumerate(parameters))
    stack: list[int] = []
    result = []
    try:
        for kind in kinds:
            if kind == LOAD:
                stack.append(next(loaded).shape[-1])
            elif kind in JOINS:
                top = stack.pop()
                if kind != CONCAT and top != stack[-1]:
                    raise ValueError(f"{steps} join {stack[-1]} channels with {top}")
                stack[-1] += top if kind == CONCAT else 0
            elif kind in PARAMETERS:
                stack[-1] = _check_layer(kind, stack[-1], tensors[0], [next(given) for _ in PARAMETERS[kind]])
            elif kind != SILU:
                raise ValueError(f"{steps} include the unknown step {kind}")
            result.append(stack[-1])
    except (IndexError, StopIteration):
        raise ValueError(f"{steps} use more tensors, parameters or results than exist") from None
    if len(stack) != 1 or next(loaded, None) is not None or next(given, None) is not None:
        raise ValueError(f"{steps} leave tensors, parameters or results unused")
    return result


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    if not tensors or tensors[0].dim() != 4 or tensors[0].dtype not in (torch.float32, torch.float64):
        given = [f"{tuple(t.shape)} {t.dtype}" for t in tensors[:1]]
        raise ValueError(f"tensors must be (batch, H, W, channels) in torch.float32 or torch.float64, not {given}")
    first = tensors[0]
    for i, tensor in enumerate(tensors):
        check_tensor(f"tensors[{i}]", tensor, (*first.shape[:3], *tensor.shape[3:4]), first.device, first.dtype)
        if tensor.numel() == 0:
            raise ValueError(f"tensors[{i}] must not be empty: {tuple(tensor.shape)}")


def _check_layer(kind: int, channels: int, like: Tensor, parameters: Sequence[tuple[int, Tensor]]) -> int:
    """Return the channels of a step's result, given its parameters with their indices."""
    index, weight = parameters[0]
    shape = (channels,) if kind == NORM else (*weight.shape[:1], channels)
    for (i, parameter), expected in zip(parameters, (shape, shape[:1]), strict=False):
        check_tensor(f"parameters[{i}]", parameter, expected, like.device, like.dtype)
    if shape[0] == 0:
        raise ValueError(f"parameters[{index}] must not be empty: {shape}")
    return shape[0]


def run_forward(tensors: Sequence[Tensor], layers: ctypes.Array[PixelLayer]) -> Tensor:
    """Run layers made by `native_layers`, and return their result (batch, H, W, channels)."""
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
    """Return structs of the steps, which point to contiguous parameters and to their gradients."""
    widths = _widths(tensors, parameters, kinds, eps)
    pointers, grad_pointers = (iter([t.data_ptr() for t in owners]) for owners in (parameters, grads))
    layers = (PixelLayer * len(kinds))()
    for layer, kind, width, layer_eps in zip(layers, kinds, widths, eps, strict=True):
        layer.kind, layer.channels, layer.eps = kind, width, layer_eps
        for name in PARAMETERS.get(kind, ()):
            setattr(layer, name, next(pointers))
            if grads:
                setattr(layer, f"grad_{name}", next(grad_pointers))
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

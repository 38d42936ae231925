"""Layers that work on every pixel on its own, as one operation."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_mamba_mis.ops import native


class Times(NamedTuple):
    """Multiply by a tensor of the same shape."""

    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.factor


class Plus(NamedTuple):
    """Add a tensor of the same shape."""

    term: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Add."""
        return x + self.term


Layer = nn.Module | Times | Plus


def pixelwise(inputs: Sequence[Tensor], *layers: Layer) -> Tensor:
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
    plan = _plan(inputs, layers)
    if plan is not None:
        # the operator itself takes as long as a small layer
        run = native_pixelwise if native.needs_operator(*plan.tensors, *plan.parameters) else _forward
        return run(*plan)
    x = torch.cat(list(inputs), dim=-1) if len(inputs) > 1 else inputs[0]
    for layer in layers:
        x = layer(x)
    return x


_NORM, _LINEAR, _SILU, _TIMES, _PLUS = range(5)  # PixelLayerKind of csrc/pixelwise.h
_KINDS: dict[type, int] = {nn.LayerNorm: _NORM, nn.Linear: _LINEAR, nn.SiLU: _SILU, Times: _TIMES, Plus: _PLUS}


class _Plan(NamedTuple):
    """Arguments of `native_pixelwise`."""

    tensors: list[Tensor]
    parameters: list[Tensor]
    inputs: int
    kinds: list[int]
    eps: list[float]


def _plan(inputs: Sequence[Tensor], layers: Sequence[Layer]) -> _Plan | None:
    """What native code is to run, or None where it cannot: it reads what it is told to, whatever lies there."""
    first = inputs[0]
    if not _native_suits(first) or not layers:
        return None
    plan = _Plan(list(inputs), [], len(inputs), [], [])
    channels = sum(x.shape[-1] for x in inputs)
    expected = [(*first.shape[:3], x.shape[-1]) for x in inputs]
    for layer in layers:
        kind = _KINDS.get(type(layer))
        if kind is None or (isinstance(layer, nn.Module) and (layer._forward_hooks or layer._forward_pre_hooks)):
            return None
        plan.kinds.append(kind)
        plan.eps.append(getattr(layer, "eps", 0.0))
        if isinstance(layer, (nn.LayerNorm, nn.Linear)):
            if layer.weight is None or layer.bias is None or layer.weight.shape[1:] not in ((), (channels,)):
                return None
            if kind == _NORM and layer.weight.shape != (channels,):
                return None
            plan.parameters.extend((layer.weight, layer.bias))
            channels = layer.weight.shape[0]
        elif isinstance(layer, (Times, Plus)):
            plan.tensors.append(layer[0])
            expected.append((*first.shape[:3], channels))
    fits = all(t.shape == shape for t, shape in zip(plan.tensors, expected, strict=True))
    alike = all(t.dtype == first.dtype and t.device == first.device for t in (*plan.tensors, *plan.parameters))
    return plan if fits and alike else None


def _native_suits(x: Tensor) -> bool:
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
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "inputs", "layers")),
        ("tensor", ctypes.POINTER(_Tensor)),
        ("grad", ctypes.POINTER(_Tensor)),
        ("layer", ctypes.POINTER(_Layer)),
        ("y", _Tensor),
    ]


@torch.library.custom_op("nnunet_mamba_mis::native_pixelwise", mutates_args=(), device_types="cpu")
def native_pixelwise(
    tensors: Sequence[Tensor], parameters: Sequence[Tensor], inputs: int, kinds: Sequence[int], eps: Sequence[float]
) -> Tensor:
    """Run pixelwise layers natively.

    Args:
        tensors: (batch, H, W, channels) each: inputs, then what `Times` and `Plus` take.
        parameters: Weight and bias of each norm and linear layer.
        inputs: Number of tensors that are concatenated.
        kinds: Layers, as PixelLayerKind of csrc/pixelwise.h numbers them.
        eps: For each layer, what a norm adds to the variance.
    """
    return _forward(tensors, parameters, inputs, kinds, eps)


def _forward(tensors, parameters, inputs: int, kinds, eps: Sequence[float]) -> Tensor:
    y = _empty_result(tensors, parameters, inputs, kinds)
    _run("forward", tensors, parameters, inputs, kinds, eps, y)
    return y


@native_pixelwise.register_fake
def _(tensors, parameters, inputs, kinds, eps):
    return _empty_result(tensors, parameters, inputs, kinds)


@torch.library.custom_op("nnunet_mamba_mis::native_pixelwise_backward", mutates_args=(), device_types="cpu")
def native_pixelwise_backward(
    grad_y: Tensor,
    tensors: Sequence[Tensor],
    parameters: Sequence[Tensor],
    inputs: int,
    kinds: Sequence[int],
    eps: Sequence[float],
) -> list[Tensor]:
    """Gradients of `native_pixelwise` with respect to its tensors, then its parameters."""
    grads = _empty_gradients(tensors, parameters)
    _run("backward", tensors, parameters, inputs, kinds, eps, grad_y, grads)
    return grads


@native_pixelwise_backward.register_fake
def _(grad_y, tensors, parameters, inputs, kinds, eps):
    return _empty_gradients(tensors, parameters)


def _setup_context(ctx, inputs, output) -> None:
    tensors, parameters, *ctx.options = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *parameters)


def _autograd(ctx, grad_y):
    tensors, parameters = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    grads = native_pixelwise_backward(grad_y, tensors, parameters, *ctx.options)
    return grads[: ctx.count], grads[ctx.count :], None, None, None


native_pixelwise.register_autograd(_autograd, setup_context=_setup_context)


def _empty_result(tensors, parameters, inputs: int, kinds) -> Tensor:
    return tensors[0].new_empty(*tensors[0].shape[:3], _channels(tensors, parameters, inputs, kinds)[-1])


def _empty_gradients(tensors, parameters) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (*tensors, *parameters)]


def _channels(tensors, parameters, inputs: int, kinds) -> list[int]:
    """Channels after each layer."""
    channels = sum(t.shape[-1] for t in tensors[:inputs])
    weights = iter(parameters[::2])
    result = []
    for kind in kinds:
        if kind in (_NORM, _LINEAR):
            channels = next(weights).shape[0]
        result.append(channels)
    return result


def _run(direction: str, tensors, parameters, inputs: int, kinds, eps: Sequence[float], y: Tensor, grads=()) -> None:
    contiguous = [p.contiguous() for p in parameters]
    pointers = iter([(w.data_ptr(), b.data_ptr()) for w, b in zip(contiguous[::2], contiguous[1::2], strict=True)])
    grad_parameters = grads[len(tensors) :]
    grad_pointers = iter([g.data_ptr() for g in grad_parameters])
    layers = (_Layer * len(kinds))()
    widths = _channels(tensors, parameters, inputs, kinds)
    for layer, kind, channels, layer_eps in zip(layers, kinds, widths, eps, strict=True):
        layer.kind, layer.channels, layer.eps = kind, channels, layer_eps
        if kind in (_NORM, _LINEAR):
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
        inputs,
        len(kinds),
        (_Tensor * len(tensors))(*map(_as_tensor, tensors)),
        (_Tensor * len(tensors))(*map(_as_tensor, grads[: len(tensors)])),
        layers,
        _as_tensor(y),
    )
    native.run(f"pixelwise_{direction}", problem)


def _as_tensor(t: Tensor) -> _Tensor:
    return _Tensor(t.data_ptr(), t.shape[-1], t.stride())

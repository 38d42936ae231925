"""The package's operators under transforms of torch.func, forward-mode differentiation and second derivatives.

An operator has only the derivative that it registers. A transform that needs another derivative would get zeros or an
error. While a transform is active, an operator therefore runs as equivalent PyTorch operations, which all transforms
support.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import make_autograd_impl
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

_LIBRARY = torch.library.Library("nnunet_mamba_mis", "IMPL")
_ORDINARY_KEYS = tuple(f"Autograd{kind}" for kind in ("CPU", "CUDA", "Meta", "MPS", "XPU", "PrivateUse1"))


def transformed() -> bool:
    """Return whether forward-mode differentiation or a transform of torch.func is active."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def is_batched(x: Tensor) -> bool:
    """Return whether a tensor represents several tensors, as gradients do under `is_grads_batched`."""
    return torch._C._functorch.is_legacy_batchedtensor(x) or torch._C._functorch.is_batchedtensor(x)


def decompose_under_transforms(operator: Any, in_torch: Callable[..., Any]) -> None:
    """Run an operator as PyTorch operations while a transform is active.

    Args:
        operator: Operator made by `torch.library.custom_op`.
        in_torch: Function of the same arguments, with the same results, that all transforms support.
    """
    _route(operator, in_torch, lambda _arguments: transformed())


def decompose_gradient(backward: Any, in_torch: Callable[..., Any]) -> None:
    """Run a backward operator as PyTorch operations if a transform is active or the operator is differentiated."""
    _route(backward, in_torch, lambda arguments: transformed() or _is_differentiated(arguments))


def gradients_in_torch(
    function: Callable[..., Any], tensors: Sequence[Tensor | None], grad_outputs: Any
) -> list[Tensor | None]:
    """Return gradients by PyTorch operations, which can be differentiated again.

    Args:
        function: Function of the tensors, made of PyTorch operations.
        tensors: Tensors to differentiate with respect to; None for an omitted optional tensor.
        grad_outputs: Gradients of the function's results, in the same structure as the results.

    Returns:
        One gradient per tensor, None for each None.
    """
    present = [t for t in tensors if t is not None]

    def of_present(*given: Tensor) -> Any:
        values = iter(given)
        return function(*(t if t is None else next(values) for t in tensors))

    with torch.enable_grad():
        gradients = iter(torch.func.vjp(of_present, *present)[1](grad_outputs))
    return [t if t is None else next(gradients) for t in tensors]


def _route(operator: Any, in_torch: Callable[..., Any], applies: Callable[[tuple], bool]) -> None:
    ordinary = make_autograd_impl(operator._opoverload, operator)

    def differentiate(keyset: Any, *arguments: Any) -> Any:
        return in_torch(*arguments) if applies(arguments) else ordinary(keyset, *arguments)

    def batch(_keyset: Any, *arguments: Any) -> Any:
        return in_torch(*arguments)

    name = operator._name
    # torch looks these keys up before "Autograd", where torch.library has registered the ordinary derivative
    for key in _ORDINARY_KEYS:
        _LIBRARY.impl(name, differentiate, key, with_keyset=True)
    for key in ("FuncTorchBatched", "Batched"):
        _LIBRARY.impl(name, batch, key, with_keyset=True)


def _is_differentiated(arguments: tuple) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in tree_leaves(arguments))

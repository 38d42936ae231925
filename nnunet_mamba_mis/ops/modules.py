"""Check whether calling a layer computes only what its class defines, so that native code may replace the call."""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as torch_modules

Module = TypeVar("Module", bound=nn.Module)

# captured at import, since user code may replace methods of torch's classes
_FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.Conv1d, nn.LayerNorm, nn.Linear, nn.Sequential, nn.SiLU)
}
# dicts, empty if there are no global hooks
GLOBAL_HOOKS = (
    torch_modules._global_forward_hooks,
    torch_modules._global_forward_pre_hooks,
    torch_modules._global_backward_hooks,
    torch_modules._global_backward_pre_hooks,
)
_TENSORS = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)  # types that behave like ordinary tensors


def is_ordinary(layer: object, kind: type[Module]) -> TypeGuard[Module]:
    """Return whether a layer is exactly of this torch.nn class, with its original forward and without hooks."""
    return type(layer) is kind and _FORWARDS[kind] is kind.forward and runs_forward_alone(layer)


def runs_forward_alone(module: nn.Module) -> bool:
    """Return whether a call of a module runs only its class's forward: no hooks, no `forward` set on the instance.

    Global hooks count too.
    """
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or any(GLOBAL_HOOKS)
    )


def is_itself(module: nn.Module, kind: type[nn.Module], *parameters: Tensor) -> bool:
    """Return whether a module is exactly of this class, without hooks, and these parameters are ordinary tensors."""
    return type(module) is kind and runs_forward_alone(module) and are_ordinary_tensors(*parameters)


def are_ordinary_tensors(*tensors: Tensor | None) -> bool:
    """Return whether no tensor belongs to a subclass that overrides torch's functions, such as a quantised tensor."""
    return all(t is None or type(t) in _TENSORS for t in tensors)


def has_ordinary_weights(layer: nn.Module, kind: type[nn.Linear] | type[nn.Conv1d], bias: bool = True) -> bool:
    """Return whether a layer is ordinary and has ordinary parameters: a weight and, if and only if `bias`, a bias."""
    return (
        is_ordinary(layer, kind) and (layer.bias is not None) == bias and are_ordinary_tensors(layer.weight, layer.bias)
    )

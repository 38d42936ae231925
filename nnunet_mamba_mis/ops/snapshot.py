"""Cheap detection of changes in a module."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn

from nnunet_mamba_mis.ops.modules import GLOBAL_HOOKS


class Snapshot:
    """Identities of the classes, attributes, parameters and submodules of a module and of its submodules.

    Args:
        module: The module.
        without: Value of an attribute to leave out, because it refers to the snapshot.
    """

    def __init__(self, module: nn.Module, without: object) -> None:
        _, *self._inner = module.modules()
        self._without = id(without)
        self._dicts = [vars(inner) for inner in self._inner]
        self._hooks: list[Any] = []
        for each in (module, *self._inner):
            self._dicts += (each._parameters, each._modules)
            self._hooks += (
                each._forward_hooks,
                each._forward_pre_hooks,
                each._backward_hooks,
                each._backward_pre_hooks,
            )
        self._values = self._values_of(module)

    def holds(self, module: nn.Module) -> bool:
        """Return whether the module is unchanged and no hooks exist: its own, its submodules' or global ones."""
        if any(self._hooks) or any(GLOBAL_HOOKS):
            return False
        values = self._values_of(module)
        return len(values) == len(self._values) and all(map(operator.is_, values, self._values))

    def _values_of(self, module: nn.Module) -> list[object]:
        without = self._without
        values: list[object] = [value for value in vars(module).values() if id(value) != without]
        values.append(type(module))
        values += map(type, self._inner)
        for attributes in self._dicts:
            values += attributes.values()
        return values

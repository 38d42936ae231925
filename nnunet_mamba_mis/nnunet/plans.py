"""The network's entry in a plans file, from which nnU-Net and our trainers build it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_mamba_mis.architectures.mamba_mis import PLANS_STRIDES

NETWORK_CLASS = "nnunet_mamba_mis.architectures.MambaMIS"
# what a plan says for nnU-Net's sake; trainers know it anyway
_NOT_ARCHITECTURE = {"patch_size", "strides", "deep_supervision"}


def architecture_entry(patch_size: tuple[int, int], variant: str) -> dict[str, Any]:
    """The entry `architecture` of a configuration: with it nnU-Net's own trainers train Mamba-MIS."""
    strides = [list(stride) for stride in PLANS_STRIDES]
    kwargs = {"patch_size": list(patch_size), "variant": variant, "strides": strides}
    return {"network_class_name": NETWORK_CLASS, "arch_kwargs": kwargs, "_kw_requires_import": []}


def planned_architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `MambaMIS` that a configuration has; empty if it is of another network."""
    entry = configuration.get("architecture", {})
    if entry.get("network_class_name") != NETWORK_CLASS:
        return {}
    return {name: value for name, value in entry["arch_kwargs"].items() if name not in _NOT_ARCHITECTURE}

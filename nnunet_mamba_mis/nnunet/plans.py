"""Plans files, and the network's entry in them, from which nnU-Net and our trainers build it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_mamba_mis.architectures.mamba_mis import PLANS_STRIDES
from nnunet_mamba_mis.utils.errors import UserError

NETWORK_CLASS = "nnunet_mamba_mis.architectures.MambaMIS"
# in plans for nnU-Net alone; trainers know it anyway
_NOT_ARCHITECTURE = {"patch_size", "strides", "deep_supervision"}


def read_plans(path: Path) -> dict[str, Any]:
    """Return the content of a plans file.

    Raises:
        UserError: The file is missing, incomplete or not of plans; the text names it and the way out.
    """
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
        plans["configurations"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a readable plans file ({error}): remove it, and plan again") from None
    return plans


def architecture_entry(patch_size: tuple[int, int], variant: str) -> dict[str, Any]:
    """Return the entry `architecture` of a configuration: with it nnU-Net's own trainers train Mamba-MIS."""
    strides = [list(stride) for stride in PLANS_STRIDES]
    kwargs = {"patch_size": list(patch_size), "variant": variant, "strides": strides}
    return {"network_class_name": NETWORK_CLASS, "arch_kwargs": kwargs, "_kw_requires_import": []}


def planned_architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `MambaMIS` that a configuration has; empty if it is of another network."""
    entry = configuration.get("architecture", {})
    if entry.get("network_class_name") != NETWORK_CLASS:
        return {}
    return {name: value for name, value in entry["arch_kwargs"].items() if name not in _NOT_ARCHITECTURE}

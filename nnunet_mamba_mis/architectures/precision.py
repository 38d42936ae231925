"""Keeping parts of the network in float32 under autocast."""

from __future__ import annotations

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which autocast leaves the operations on x's device alone."""
    return torch.autocast(x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """The half-precision types as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

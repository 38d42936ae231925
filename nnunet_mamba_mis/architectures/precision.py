"""Keep parts of the network in float32 under autocast."""

from __future__ import annotations

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> torch.autocast:
    """Return a context that disables autocast on x's device."""
    return torch.autocast(x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

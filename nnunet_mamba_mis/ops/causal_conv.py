"""The short causal convolution of a Mamba block."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.inputs import check_tensor
from nnunet_mamba_mis.ops.tracing import constant_when_traced
from nnunet_mamba_mis.ops.transforms import transformed


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return SiLU of a causal depthwise convolution: each position sees itself and the positions before it.

    The input is padded with zeros before the first position. On a GPU, causal-conv1d computes the result if it is
    installed and supports the inputs. Otherwise torch's convolution does.

    Args:
        x: (batch, channels, L).
        weight: (channels, 1, width); the last tap belongs to the position itself.
        bias: (channels,).

    Returns:
        (batch, channels, L).

    Raises:
        ValueError: A shape, type or device is wrong.
    """
    if x.dim() != 3 or weight.dim() != 3 or x.numel() == 0 or weight.numel() == 0:
        raise ValueError(
            f"x must be (batch, channels, L) and weight (channels, 1, width), not empty: "
            f"{tuple(x.shape)}, {tuple(weight.shape)}"
        )
    channels, width = x.shape[1], weight.shape[-1]
    check_tensor("x", x, x.shape, x.device)
    check_tensor("weight", weight, (channels, 1, width), x.device)
    check_tensor("bias", bias, (channels,), x.device)
    if x.is_cuda and 2 <= width <= 4 and not transformed() and _has_kernel():
        from causal_conv1d import causal_conv1d_fn

        return causal_conv1d_fn(x.contiguous(), weight.squeeze(1), bias, activation="silu")
    return F.silu(F.conv1d(F.pad(x, (width - 1, 0)), weight, bias, groups=len(weight)))


@constant_when_traced  # a search for libraries cannot be traced
def _has_kernel() -> bool:
    return _find_kernel()


@functools.cache
def _find_kernel() -> bool:
    # a kernel built for another version of torch exists but cannot be imported
    try:
        importlib.import_module("causal_conv1d_cuda")
    except ImportError:
        return False
    return importlib.util.find_spec("causal_conv1d") is not None

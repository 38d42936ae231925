"""Count the operations of a network, including scans and Fourier transforms.

The count covers the operations listed in documentation/reference/cost.md, for the forward pass of one image. torch
counts matrix products, convolutions and attention; the formulas here add the operations that it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import nnunet_mamba_mis.ops  # noqa: F401 (registers the operators)
from nnunet_mamba_mis.ops.pixelwise import LINEAR, NORM

Shapes = Sequence[Sequence[int]]

# per state and position: the usual count for Mamba, with an exponential as one operation
SCAN = 9
# a complex transform of N values takes 5 N log2(N) operations; half as many if one side is real
FOURIER = 5
# a complex product and sum
COMPLEX_ADDCMUL = 8


def count_flops(build: Callable[[], nn.Module], shape: Sequence[int]) -> int:
    """Return the number of operations of a forward pass in evaluation mode; a multiply-add counts as two.

    Nothing is computed or allocated, so any size is possible.

    Args:
        build: Function that builds the network.
        shape: Shape of the network's input, (batch, channels, *size).
    """
    # always on "cpu": all backends have the same count
    with FakeTensorMode(), torch.device("cpu"):
        network = build().eval()
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            network(torch.empty(*shape))
    return counter.get_total_flops()


def scan_flops(
    u: Sequence[int], delta: Sequence[int], A: Sequence[int], *_arguments: object, **_outputs: object
) -> int:
    """Return the operations of the selective scan with u (batch, D, L) or (batch, D, H, W) and A (D, N)."""
    return SCAN * math.prod(u) * A[1]


def s6_flops(u: Sequence[int], weight: Sequence[int], A: Sequence[int], *_arguments: object, **_outputs: object) -> int:
    """Return the operations of a scan and its projections for u (batch, D, H, W), weight (D + 2N, D) and A (D, N)."""
    return 2 * math.prod(u) * weight[0] + scan_flops(u, u, A)


def pixelwise_flops(
    tensors: Shapes, parameters: Shapes, kinds: Sequence[int], *_arguments: object, **_outputs: object
) -> int:
    """Return the number of operations of the linear layers in a list of pixelwise layers.

    Args:
        tensors: Shapes of the inputs, (batch, H, W, channels).
        parameters: Shapes of the layers' weights and biases; for linear layers (out, in) and (out,).
        kinds: Kind of each layer.
    """
    pixels = math.prod(tensors[0][:3])
    with_weights = [kind for kind in kinds if kind in (NORM, LINEAR)]
    return sum(
        2 * pixels * math.prod(weight)
        for kind, weight in zip(with_weights, parameters[::2], strict=True)
        if kind == LINEAR
    )


def real_fft_flops(
    x: Sequence[int], dim: Sequence[int], *_arguments: object, out_shape: Sequence[int], **_outputs: object
) -> int:
    """Return the operations of a transform between real and complex values; the real side has the full grid."""
    full_grid = [max(sides) for sides in zip(x, out_shape, strict=True)]
    return complex_fft_flops(full_grid, dim) // 2


def complex_fft_flops(x: Sequence[int], dim: Sequence[int], *_arguments: object, **_outputs: object) -> int:
    """Return the operations of a complex transform of x along dim."""
    points = math.prod(x[axis] for axis in dim)
    return round(FOURIER * math.prod(x) * math.log2(points))


def addcmul_flops(*_arguments: object, out_val: Tensor, **_options: object) -> int:
    """Return the operations of a complex `addcmul`, as in spectral gates; a real one is elementwise and not counted."""
    return COMPLEX_ADDCMUL * out_val.numel() if out_val.is_complex() else 0


addcmul_flops._get_raw = True  # type: ignore[attr-defined] # makes FlopCounterMode pass tensors, not shapes

FORMULAS = {
    torch.ops.nnunet_mamba_mis.selective_scan: scan_flops,
    torch.ops.nnunet_mamba_mis.chunked_scan: scan_flops,
    torch.ops.nnunet_mamba_mis.native_s6: s6_flops,
    torch.ops.nnunet_mamba_mis.native_pixelwise: pixelwise_flops,
    torch.ops.aten._fft_r2c: real_fft_flops,
    torch.ops.aten._fft_c2r: real_fft_flops,
    torch.ops.aten._fft_c2c: complex_fft_flops,
    torch.ops.aten.addcmul: addcmul_flops,
}

"""Operations that a network takes, the scan's and Fourier transforms' among them.

The count covers the operations in documentation/reference/cost.md, for one image and the forward pass. torch counts
matrix products, convolutions and attention; formulas here add the operations that it does not know.
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

# for each state of a position: the usual count for Mamba, which takes an exponential for one operation
SCAN = 9
# for each value of a complex transform of N values these times log2(N); half as many where one side is real
FOURIER = 5
# a complex product and sum
COMPLEX_ADDCMUL = 8


def count_flops(build: Callable[[], nn.Module], shape: Sequence[int]) -> int:
    """Operations of a forward pass in evaluation; a multiplication with its addition is two.

    Nothing is computed nor allocated, so that size does not matter.

    Args:
        build: Makes the network.
        shape: (batch, channels, *size) of its input.
    """
    # a device of type "cpu" whatever there is; the count of a backend is that of all
    with FakeTensorMode(), torch.device("cpu"):
        network = build().eval()
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            network(torch.empty(*shape))
    return counter.get_total_flops()


def scan_flops(
    u: Sequence[int], delta: Sequence[int], A: Sequence[int], *_arguments: object, **_outputs: object
) -> int:
    """Of the selective scan, from its shapes: u (batch, D, L) or (batch, D, H, W), A (D, N)."""
    return SCAN * math.prod(u) * A[1]


def s6_flops(u: Sequence[int], weight: Sequence[int], A: Sequence[int], *_arguments: object, **_outputs: object) -> int:
    """Of scan and projections: u (batch, D, H, W), weight (D + 2N, D), A (D, N)."""
    return 2 * math.prod(u) * weight[0] + scan_flops(u, u, A)


def pixelwise_flops(
    tensors: Shapes, parameters: Shapes, kinds: Sequence[int], *_arguments: object, **_outputs: object
) -> int:
    """Of the linear layers among pixelwise layers: tensors (batch, H, W, channels), parameters (out, in) and (out,)."""
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
    """Of a transform between real and complex values: the real side has the whole grid."""
    whole = [max(sides) for sides in zip(x, out_shape, strict=True)]
    return complex_fft_flops(whole, dim) // 2


def complex_fft_flops(x: Sequence[int], dim: Sequence[int], *_arguments: object, **_outputs: object) -> int:
    """Of a complex transform of x along dim."""
    points = math.prod(x[axis] for axis in dim)
    return round(FOURIER * math.prod(x) * math.log2(points))


def addcmul_flops(*_arguments: object, out_val: Tensor, **_options: object) -> int:
    """Of `addcmul` where it is complex, as in spectral gates; real ones are elementwise, and not counted."""
    return COMPLEX_ADDCMUL * out_val.numel() if out_val.is_complex() else 0


addcmul_flops._get_raw = True  # type: ignore[attr-defined] # for FlopCounterMode: with tensors, not their shapes

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

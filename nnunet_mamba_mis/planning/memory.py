"""Model of the memory that a training step of Mamba-MIS takes.

Memory peaks at the start of the backward pass. It then holds

- weights, gradients and AdamW's two moments: 16 bytes per parameter. Spectral gates have parameters for each pixel of
  the patch, so they matter;
- what blocks keep for backward, including the scans' states. It scales with the pixels of a block's features: a block
  of C channels keeps `per_channel` · C + `per_pixel` bytes for each of its H × W pixels;
- what the loss and the layers between blocks keep (stem, convolutions, merges, expands, bridge, heads): bytes per pixel
  of the image. With a convolutional stem this part dominates, and there are no blocks at full resolution;
- scratch memory of the running operation. It is largest in the decoder's last layers, which have full resolution, so it
  also scales with the pixels of the image.

Everything except the parameters grows with the batch. The numbers describe this code on two kinds of devices:

- "cpu": float32, native code, which keeps inputs and recomputes intermediate values (`ops/pixelwise.py`, `ops/s6.py`);
- "cuda": fp16 autocast, PyTorch layer by layer, and the scan in Triton (`ops/selective_scan/triton.py`). The scan keeps
  Δ, B and C (32 states each for B and C), and a state for every 8 positions. Savings from torch.compile are not
  included.

Kept memory was counted tensor by tensor with autograd's saved-tensor hooks (for the GPU with fake tensors). Scratch
memory was fitted to measured peaks on a CPU and an H100. `performance/memory.py` compares peaks with the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from nnunet_mamba_mis.architectures.mamba_mis import (
    DECODER_STRIDES,
    ENCODER_STRIDES,
    VARIANTS,
    MambaMIS,
)

_BYTES_PER_PARAMETER = 16
_COARSEST = ENCODER_STRIDES[-1]


class _Bytes(NamedTuple):
    """Bytes that training holds on one kind of device."""

    per_channel: float  # kept by a block, for each channel of each pixel of its features
    per_pixel: float  # kept by a block, for each pixel of its features
    between_blocks: dict[str, float]  # kept between blocks, for each pixel of the image, by stem
    # what variant H, which has convolutions and is twice as wide as the others, adds to `between_blocks`
    hybrid: dict[str, float]
    scratch: dict[str, float]  # for each pixel of the image, by stem
    process: float  # before the network exists: CUDA's context and libraries, or Python with nnU-Net


_DEVICES = {
    "cpu": _Bytes(
        per_channel=45.5,
        per_pixel=0,
        between_blocks={"patch": 220, "conv": 815},
        hybrid={"patch": 472, "conv": 190},
        scratch={"patch": 150, "conv": 650},
        process=0.6e9,
    ),
    "cuda": _Bytes(
        per_channel=97.3,
        per_pixel=296,
        between_blocks={"patch": 236, "conv": 595},
        hybrid={"patch": 524, "conv": 193},
        scratch={"patch": 130, "conv": 150},
        process=0.5e9,
    ),
}


class Stage(NamedTuple):
    """The blocks of one stage, and the size of their features."""

    depth: int
    channels: int
    height: int
    width: int


def training_bytes(
    device: str,
    variant: str,
    patch_size: tuple[int, int],
    batch_size: int,
    input_channels: int = 3,
    classes: int = 2,
    stem: str = "patch",
) -> float:
    """Return the peak number of bytes that training with deep supervision takes, in addition to `process_bytes`.

    Args:
        device: "cpu" or "cuda".
        variant: "S", "B", "L" or "H".
        patch_size: Height and width.
        batch_size: Images in a batch.
        input_channels: Channels of an image.
        classes: Channels of the logits.
        stem: "patch" or "conv".
    """
    kept = kept_bytes(device, variant, patch_size, input_channels, stem)
    # bytes per pixel: per class, the logit, its softmax in cross entropy and Dice, and gradients; once, the targets
    loss = 20 * classes + 20
    pixels = math.prod(_padded(patch_size))
    per_image = kept + pixels * (loss + _DEVICES[device].scratch[stem])
    weights = _BYTES_PER_PARAMETER * parameters(variant, patch_size, input_channels, classes, stem)
    return weights + batch_size * per_image


def kept_bytes(
    device: str, variant: str, patch_size: tuple[int, int], input_channels: int = 3, stem: str = "patch"
) -> float:
    """Return the bytes that the network keeps for backward for one image; arguments are those of `training_bytes`."""
    bytes_ = _DEVICES[device]
    blocks = sum(
        s.depth * s.height * s.width * (bytes_.per_channel * s.channels + bytes_.per_pixel)
        for s in stages(variant, patch_size, stem)
    )
    others = bytes_.between_blocks[stem] + 4 * input_channels
    if variant == "H":
        others += bytes_.hybrid[stem]
    return blocks + math.prod(_padded(patch_size)) * others


def process_bytes(device: str) -> float:
    """Return the bytes that a process takes before the network exists."""
    return _DEVICES[device].process


def parameters(
    variant: str, patch_size: tuple[int, int], input_channels: int = 3, classes: int = 2, stem: str = "patch"
) -> int:
    """Return the number of parameters with deep supervision; arguments are those of `training_bytes`."""
    smallest = (_COARSEST, _COARSEST)
    without_gates = _count(variant, input_channels, classes, stem) - _gate_parameters(variant, smallest, stem)
    return without_gates + _gate_parameters(variant, patch_size, stem)


def stages(variant: str, patch_size: tuple[int, int], stem: str) -> Iterator[Stage]:
    """Yield all stages of the network, encoder first."""
    height, width = _padded(patch_size)
    size = VARIANTS[variant]
    encoder = zip(size.encoder, size.encoder_channels, ENCODER_STRIDES, strict=True)
    decoder = zip(size.decoder, size.decoder_channels, DECODER_STRIDES, strict=True)
    for depth, channels, stride in (*encoder, *decoder):
        # with a convolutional stem, convolutions replace the stage at full resolution
        if stem == "patch" or stride > 1:
            yield Stage(depth, channels, height // stride, width // stride)


def _gate_parameters(variant: str, patch_size: tuple[int, int], stem: str) -> int:
    # weight and bias, both complex
    return sum(4 * s.depth * s.channels * s.height * (s.width // 2 + 1) for s in stages(variant, patch_size, stem))


@functools.cache
def _count(variant: str, input_channels: int, classes: int, stem: str) -> int:
    with torch.device("meta"):
        patch_size = (_COARSEST, _COARSEST)
        network = MambaMIS(input_channels, classes, patch_size, variant=variant, stem=stem, deep_supervision=True)
    return sum(parameter.numel() for parameter in network.parameters())


def _padded(patch_size: tuple[int, int]) -> tuple[int, int]:
    height, width = (_COARSEST * math.ceil(side / _COARSEST) for side in patch_size)
    return height, width

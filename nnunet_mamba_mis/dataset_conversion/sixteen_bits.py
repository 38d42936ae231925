"""Images with 16 bits a channel: decode all of them, and bring those of a whole source to 8 bits by one rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_mamba_mis.dataset_conversion.decoding import MAX_PIXELS, BadFileError, captured_output, too_large
from nnunet_mamba_mis.dataset_conversion.headers import Header
from nnunet_mamba_mis.utils.text import shortened

# of cameras, microscopes and scanners
DEPTHS = (8, 10, 12, 14, 16)

_OPAQUE = 2**16 - 1
# 8 bits a that became 16 as a * 256 + a
_REPEATED = 257


class SixteenBits:
    """The samples of a PNG or TIFF with 16 bits a channel.

    Args:
        data: The file's bytes.
        header: Of the file.

    Raises:
        BadFileError: It is damaged, or has transparent pixels.
    """

    def __init__(self, data: bytes, header: Header) -> None:
        if header.size[0] * header.size[1] > MAX_PIXELS:
            raise too_large()
        # height × width × 1 or 3
        self._samples = _opaque(_decoded(data, header), header.alpha)

    @property
    def mode(self) -> str:
        """Its kind in words."""
        return f"16-bit {'grey' if self._samples.shape[2] == 1 else 'RGB'}"

    @cached_property
    def bits(self) -> int:
        """The smallest of `DEPTHS` that holds its brightest sample."""
        brightest = int(self._samples.max())
        return next(bits for bits in DEPTHS if brightest < 2**bits)

    def image(self, bits: int) -> Image.Image:
        """Return it with 8 bits a channel.

        Args:
            bits: What is white: the sample 2^bits - 1.

        Raises:
            BadFileError: It has brighter samples, which would be lost.
        """
        if self.bits > bits:
            raise BadFileError(f"has samples up to {self._samples.max()}, which {bits} bits cannot hold")
        white = 2**bits - 1
        # halves away from zero, exact in integers
        table = ((np.arange(white + 1) * 510 + white) // (2 * white)).astype(np.uint8)
        return _image(table[self._samples])

    def mask(self) -> Image.Image:
        """Return the samples as they are, where 8 bits hold them, or what 8 bits were before they became 16.

        Raises:
            BadFileError: They are neither.
        """
        values = np.unique(self._samples)
        if values[-1] > 255:
            if (values % _REPEATED).any():
                listed = shortened([str(value) for value in values])
                raise BadFileError(f"has the 16-bit values {listed}: expected at most 255, or multiples of {_REPEATED}")
            return _image((self._samples // _REPEATED).astype(np.uint8))
        return _image(self._samples.astype(np.uint8))


def report_entry(bits: Sequence[int], given: int | None = None) -> dict[str, object]:
    """Return what a report says of the bit depth of images.

    Args:
        bits: What the samples of each image need; 0 for those with 8 bits a channel.
        given: What they were scaled from, if not what the brightest of them needs.
    """
    number = sum(map(bool, bits))
    white = (given or max(bits)) if number else None
    rule = f"16-bit samples become {_scale(white)}" if white else "8 bits a channel, unchanged"
    return {"rule": rule, "bits": white, "number_with_16_bits": number}


def sixteen_bits_note(bits: Sequence[int]) -> str:
    """Return what users should know of a source with 16-bit images; `bits` is as in `report_entry`."""
    white, number = max(bits), sum(map(bool, bits))
    others = f"; the other {len(bits) - number}, of 8 bits, are unchanged" if number < len(bits) else ""
    return (
        f"{number} of {len(bits)} images have 16 bits a channel, of which all together use {white}: they become "
        f"{_scale(white)}{others}. New images to predict need the same: mamba_mis convert images --bits {white}"
    )


def _scale(bits: int) -> str:
    return f"round(sample × 255 / {2**bits - 1})"


def _decoded(data: bytes, header: Header) -> NDArray[np.uint16]:
    # here, as most sources have no such image and each worker would wait for the import
    import imagecodecs

    # Not Pillow, which keeps 8 of 16 bits a channel in RGB, and not ITK, which reads paths alone: that would be a
    # second reading of the file. nnU-Net brings imagecodecs.
    decode = imagecodecs.png_decode if header.format == "PNG" else imagecodecs.tiff_decode
    # libpng prints its warnings
    with captured_output():
        samples = np.asarray(decode(data))
    if header.separate and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype != np.uint16 or samples.ndim not in (2, 3) or samples.shape[1::-1] != header.size:
        raise BadFileError("is truncated or damaged (its pixels are not what its header says)")
    return samples.reshape(*samples.shape[:2], -1)


def _opaque(samples: NDArray[np.uint16], alpha: bool) -> NDArray[np.uint16]:
    """Return samples without a channel of unspecified meaning, or an alpha channel that hides nothing."""
    channels = samples.shape[2]
    if channels not in (1, 2, 3, 4):
        raise BadFileError(f"has {channels} channels of 16 bits: save it as RGB or grey")
    if channels in (1, 3):
        return samples
    if alpha and (samples[..., -1] != _OPAQUE).any():
        raise BadFileError("has transparent pixels: save it as RGB or grey, without alpha")
    return samples[..., :-1]


def _image(samples: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(samples.squeeze(axis=2) if samples.shape[2] == 1 else samples)

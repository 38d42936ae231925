"""Decode images with 16 bits per channel, and scale those of a whole source to 8 bits by one rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_mamba_mis.dataset_conversion.decoding import MAX_PIXELS, BadFileError, captured_output, too_large
from nnunet_mamba_mis.dataset_conversion.headers import Header
from nnunet_mamba_mis.utils.text import shortened

# bit depths of cameras, microscopes and scanners
DEPTHS = (8, 10, 12, 14, 16)

_OPAQUE = 2**16 - 1
# factor between 8-bit samples a and 16-bit samples a * 256 + a
_REPEATED = 257


class SixteenBits:
    """The samples of a PNG or TIFF with 16 bits per channel.

    Args:
        data: The file's bytes.
        header: The file's header.

    Raises:
        BadFileError: The file is damaged or has transparent pixels.
    """

    def __init__(self, data: bytes, header: Header) -> None:
        if header.size[0] * header.size[1] > MAX_PIXELS:
            raise too_large()
        # height × width × 1 or 3
        self._samples = _opaque(_decoded(data, header), header.alpha)

    @property
    def mode(self) -> str:
        """Description of the mode."""
        return f"16-bit {'grey' if self._samples.shape[2] == 1 else 'RGB'}"

    @cached_property
    def bits(self) -> int:
        """The smallest of `DEPTHS` that can represent the brightest sample."""
        brightest = int(self._samples.max())
        return next(bits for bits in DEPTHS if brightest < 2**bits)

    def image(self, bits: int) -> Image.Image:
        """Return the image scaled to 8 bits per channel.

        Args:
            bits: Bit depth; the sample 2^bits - 1 becomes white.

        Raises:
            BadFileError: The image has brighter samples, which would be lost.
        """
        if self.bits > bits:
            raise BadFileError(f"has samples up to {self._samples.max()}, which do not fit in {bits} bits")
        white = 2**bits - 1
        # round half away from zero, exactly, in integers
        table = ((np.arange(white + 1) * 510 + white) // (2 * white)).astype(np.uint8)
        return _image(table[self._samples])

    def mask(self) -> Image.Image:
        """Return the samples unchanged if they fit in 8 bits, or else the 8-bit samples they were expanded from.

        Raises:
            BadFileError: The samples neither fit in 8 bits nor were expanded from 8 bits.
        """
        values = np.unique(self._samples)
        if values[-1] > 255:
            if (values % _REPEATED).any():
                listed = shortened([str(value) for value in values])
                raise BadFileError(f"has the 16-bit values {listed}: expected at most 255, or multiples of {_REPEATED}")
            return _image((self._samples // _REPEATED).astype(np.uint8))
        return _image(self._samples.astype(np.uint8))


def report_entry(bits: Sequence[int], given: int | None = None) -> dict[str, object]:
    """Return a report's entry about the bit depth of images.

    Args:
        bits: Bits that the samples of each image need; 0 for images with 8 bits per channel.
        given: Bit depth that the images were scaled from; None means the depth that the brightest image needs.
    """
    number = sum(map(bool, bits))
    white = (given or max(bits)) if number else None
    rule = f"16-bit samples become {_scale(white)}" if white else "8 bits per channel, unchanged"
    return {"rule": rule, "bits": white, "number_with_16_bits": number}


def sixteen_bits_note(bits: Sequence[int]) -> str:
    """Return a note to users of a source with 16-bit images; `bits` is as in `report_entry`."""
    white, number = max(bits), sum(map(bool, bits))
    others = f"; the other {len(bits) - number} have 8 bits and are unchanged" if number < len(bits) else ""
    return (
        f"{number} of {len(bits)} images have 16 bits per channel, of which at most {white} are used: samples become "
        f"{_scale(white)}{others}. Convert new images for prediction with `mamba_mis convert images --bits {white}`"
    )


def _scale(bits: int) -> str:
    return f"round(sample × 255 / {2**bits - 1})"


def _decoded(data: bytes, header: Header) -> NDArray[np.uint16]:
    # imported here: most sources have no 16-bit image, and every worker would wait for the import
    import imagecodecs

    # imagecodecs comes with nnU-Net. Pillow keeps only 8 of 16 bits per channel in RGB, and ITK would read the file
    # again, from its path
    decode = imagecodecs.png_decode if header.format == "PNG" else imagecodecs.tiff_decode
    # libpng prints warnings
    with captured_output():
        samples = np.asarray(decode(data))
    if header.separate and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype != np.uint16 or samples.ndim not in (2, 3) or samples.shape[1::-1] != header.size:
        raise BadFileError("is truncated or damaged (its pixels do not match its header)")
    return samples.reshape(*samples.shape[:2], -1)


def _opaque(samples: NDArray[np.uint16], alpha: bool) -> NDArray[np.uint16]:
    """Return samples without a second or fourth channel, which must be opaque alpha or have no specified meaning."""
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

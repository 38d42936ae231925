"""Read an image file's header: its format, and its bit depth, which decoders change silently."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from PIL import ExifTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from nnunet_mamba_mis.dataset_conversion import png
from nnunet_mamba_mis.dataset_conversion.decoding import BadFileError

# bit depths that Pillow scales to 8: 0…1, 0…3 and 0…15 become 0…255; palette indices keep their values
_SMALL = (1, 2, 4, 8)
_DEEP = 16

# start of frame: the segments of a JPEG that define its coding
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# markers without a segment
_BARE = {0x00, 0x01, *range(0xD0, 0xDA)}

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _PLANAR, _COLOUR_MAP = 256, 257, 258, 262, 284, 320
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE = 0, 1, 2, 3
_SEPARATE = 2
# extra samples that are neither associated nor unassociated alpha
_UNSPECIFIED = 0


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Args:
        format: Pillow's name for the format.
        suffixes: File name suffixes of the format, the usual one first.
        bits: Bits per channel or per palette index: at most 8, or 16.
        size: Width and height of a PNG or TIFF; (0, 0) for other formats.
        separate: Whether channels are stored one after another instead of interleaved.
        alpha: Whether a channel after the colours is transparency.
        white_is_zero: Whether the grey sample 0 is white.
    """

    format: str
    suffixes: tuple[str, ...]
    bits: int = 8
    size: tuple[int, int] = (0, 0)
    separate: bool = False
    alpha: bool = True
    white_is_zero: bool = False


def read_header(data: bytes) -> Header:
    """Return the header of an image file.

    Raises:
        BadFileError: The file is not an image, or its bit depth is neither 16 nor at most 8.
    """
    for start, read in _READERS.items():
        if data.startswith(start):
            return read(data)
    raise BadFileError("is not an image: its content is not JPEG, PNG, BMP, TIFF or GIF")


def _png(data: bytes) -> Header:
    png.check(data)
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    return Header("PNG", (".png",), bits, (width, height))


def _jpeg(data: bytes) -> Header:
    bits = _jpeg_bits(data)
    if bits != 8:
        raise _unsupported(f"{bits} bits per channel")
    return Header("JPEG", (".jpg", ".jpeg"))


def _jpeg_bits(data: bytes) -> int:
    position = data.find(b"\xff", 2)
    while 0 <= position < len(data) - 5:
        marker = data[position + 1]
        if marker in _FRAMES:
            return data[position + 4]
        if marker == 0xFF:
            position += 1
        elif marker in _BARE:
            position = data.find(b"\xff", position + 2)
        else:
            (length,) = struct.unpack_from(">H", data, position + 2)
            position = data.find(b"\xff", position + 2 + length)
    # no frame was found: decoding will fail
    return 8


def _tiff(data: bytes) -> Header:
    directory = ImageFileDirectory_v2(data[:16] if 43 in data[2:4] else data[:8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    start = directory.next
    directory.load(file)
    if directory.next not in (0, start):
        raise BadFileError("contains several images, expected one")
    bits = _tiff_bits(directory)
    photometric = directory.get(_PHOTOMETRIC)
    orientation = directory.get(ExifTags.Base.Orientation)
    if is_turned(orientation):
        # how Pillow treats the orientation of a TIFF depends on Pillow's version
        raise BadFileError(f"is a TIFF with orientation {orientation}: save it upright")
    if bits == _DEEP and photometric not in (_GREY, _RGB):
        raise _unsupported(f"16 bits and photometric interpretation {photometric}, expected 1 (grey) or 2 (RGB)")
    if photometric == _PALETTE and max(directory.get(_COLOUR_MAP, (256,))) < 256:
        # some programs write 8-bit palettes, and decoders that expect 16 bits turn them black
        raise BadFileError("has an 8-bit palette, but TIFF palettes have 16 bits: save it as RGB or grey")
    size = (directory[_WIDTH], directory[_HEIGHT])
    # without the tag, all readers assume alpha
    alpha = set(directory.get(_EXTRA_SAMPLES, ())) != {_UNSPECIFIED}
    separate, white_is_zero = directory.get(_PLANAR) == _SEPARATE, photometric == _WHITE_IS_ZERO
    return Header("TIFF", (".tif", ".tiff"), bits, size, separate, alpha, white_is_zero)


def _tiff_bits(directory: ImageFileDirectory_v2) -> int:
    all_bits = sorted(set(directory.get(_BITS, (1,))))
    formats: set[Any] = set(directory.get(_SAMPLE_FORMAT, (1,)))
    if odd := formats - {1}:
        raise _unsupported(" and ".join(sorted(_SAMPLE_FORMATS.get(value, "unknown") for value in odd)) + " samples")
    if len(all_bits) > 1 or all_bits[0] not in (*_SMALL, _DEEP):
        raise _unsupported(f"{', '.join(map(str, all_bits))} bits per channel")
    return all_bits[0]


def is_turned(orientation: object) -> TypeGuard[int]:
    """Return whether an EXIF orientation rotates or mirrors the image; 0 and undefined values do not."""
    return isinstance(orientation, int) and 2 <= orientation <= 8


def _unsupported(samples: str) -> BadFileError:
    return BadFileError(f"has {samples}: save it as RGB or grey, with 8 or 16 bits per channel")


def _bmp(data: bytes) -> Header:
    return Header("BMP", (".bmp",))


def _gif(data: bytes) -> Header:
    return Header("GIF", (".gif",))


_READERS: dict[bytes, Callable[[bytes], Header]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8\xff": _jpeg,
    b"BM": _bmp,
    b"GIF8": _gif,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
}

"""What an image file says of itself: its format and its own bit depth, which decoders convert without a word."""

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

# bits of a channel that Pillow spreads over 8: 0…1, 0…3 and 0…15 become 0…255, palettes' indices stay
_SMALL = (1, 2, 4, 8)
_DEEP = 16

# start of frame: the segments of a JPEG that say how it is coded
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
    """What a file says of itself.

    Args:
        format: Pillow's name of it.
        suffixes: Of its files, the usual one first.
        bits: Of each channel, or of palette indices: at most 8, or 16.
        size: Width and height, if it has 16 bits.
        separate: Whether channels follow one another instead of alternating.
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
    """Return what a file says of itself.

    Raises:
        BadFileError: It is no image, or one whose samples are neither of up to 8 nor of 16 bits.
    """
    for start, read in _READERS.items():
        if data.startswith(start):
            return read(data)
    raise BadFileError("is not an image: its content is neither JPEG, PNG, BMP, TIFF nor GIF")


def _png(data: bytes) -> Header:
    png.check(data)
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    return Header("PNG", (".png",), bits, (width, height))


def _jpeg(data: bytes) -> Header:
    bits = _jpeg_bits(data)
    if bits != 8:
        raise _odd_depth(f"{bits} bits a channel")
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
    # there is no frame: decoding will fail
    return 8


def _tiff(data: bytes) -> Header:
    directory = ImageFileDirectory_v2(data[:16] if 43 in data[2:4] else data[:8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    start = directory.next
    directory.load(file)
    if directory.next not in (0, start):
        raise BadFileError("holds several pictures, expected one")
    bits = _tiff_bits(directory)
    photometric = directory.get(_PHOTOMETRIC)
    orientation = directory.get(ExifTags.Base.Orientation)
    if is_turned(orientation):
        # Pillow's versions differ in what they make of it
        raise BadFileError(f"is a TIFF with orientation {orientation}: save it upright")
    if bits == _DEEP and photometric not in (_GREY, _RGB):
        raise _odd_depth(f"16 bits and the photometric interpretation {photometric}, not 1 (grey) or 2 (RGB)")
    if photometric == _PALETTE and max(directory.get(_COLOUR_MAP, (256,))) < 256:
        # some programs write it so; decoders that know only of 16 bits make it black
        raise BadFileError("has a palette of 8 bits, where TIFF has 16: save it as RGB or grey")
    size = (directory[_WIDTH], directory[_HEIGHT])
    # without the tag, it is alpha to all readers
    alpha = set(directory.get(_EXTRA_SAMPLES, ())) != {_UNSPECIFIED}
    separate, white_is_zero = directory.get(_PLANAR) == _SEPARATE, photometric == _WHITE_IS_ZERO
    return Header("TIFF", (".tif", ".tiff"), bits, size, separate, alpha, white_is_zero)


def _tiff_bits(directory: ImageFileDirectory_v2) -> int:
    all_bits = sorted(set(directory.get(_BITS, (1,))))
    formats: set[Any] = set(directory.get(_SAMPLE_FORMAT, (1,)))
    if odd := formats - {1}:
        raise _odd_depth(" and ".join(sorted(_SAMPLE_FORMATS.get(value, "unknown") for value in odd)) + " samples")
    if len(all_bits) > 1 or all_bits[0] not in (*_SMALL, _DEEP):
        raise _odd_depth(f"{', '.join(map(str, all_bits))} bits a channel")
    return all_bits[0]


def is_turned(orientation: object) -> TypeGuard[int]:
    """Return whether an EXIF orientation is one of those that turn or mirror; 0 and what does not exist do not."""
    return isinstance(orientation, int) and 2 <= orientation <= 8


def _odd_depth(what: str) -> BadFileError:
    return BadFileError(f"has {what}: save it as RGB or grey, 8 or 16 bits a channel")


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

"""Read untrusted images as distributed, and write PNGs."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import ExifTags, Image

from nnunet_mamba_mis.dataset_conversion import png
from nnunet_mamba_mis.dataset_conversion.decoding import (
    MAX_PIXELS,
    BadFileError,
    captured_output,
    decoding,
    too_large,
)
from nnunet_mamba_mis.dataset_conversion.headers import is_turned, read_header
from nnunet_mamba_mis.dataset_conversion.sixteen_bits import SixteenBits

# Pillow's zlib settings: level 1 writes photographs four times as fast as the default (6). Run-length encoding alone,
# which suits filtered photographs and label maps, is even faster, and gives smaller files than plain level 1.
COMPRESSION = {"compress_level": 1, "compress_type": zlib.Z_RLE}

# every decoder skips stray bytes before a marker: a few of them are harmless, but many mean lost pixels
_HARMLESS_STRAY_BYTES = 16

# Pillow's modes with at most 8 bits per channel
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa"}

# EXIF orientation → the transposition that makes the image upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SourceImage:
    """An image file's bytes and header; pixels are decoded on demand.

    Args:
        path: The file.
        sha256: Expected hash of its bytes, if it was read before.

    Raises:
        BadFileError: The file is not an image, has too many pixels or an unsupported bit depth, or has changed.
    """

    mode: str
    size: tuple[int, int]
    orientation: int

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self._path = path
        with decoding():
            data = _bytes(path)
            self.sha256 = hashlib.sha256(data).hexdigest()
            if sha256 not in (None, self.sha256):
                raise BadFileError("changed during the conversion")
            header = read_header(data)
            if path.suffix.lower() not in header.suffixes:
                raise BadFileError(f"is actually a {header.suffixes[0]} file: rename it")
            self._format = header.format
            self._bits = header.bits
            self._white_is_zero = header.white_is_zero
            self._deep = SixteenBits(data, header) if header.bits == 16 else None
            if self._deep and header.format == "TIFF":
                # Pillow opens only some 16-bit TIFFs; the orientation was checked with the header
                self.mode, self.size, self.orientation = self._deep.mode, header.size, 1
                return
            with self._quiet():
                self._image = _open(data, header.format)
            if self._image.mode not in _MODES and not self._deep:
                raise BadFileError(
                    f"has Pillow's mode {self._image.mode}: save it as RGB or grey, with 8 or 16 bits per channel"
                )
            self.mode = self._deep.mode if self._deep else self._image.mode
            self.size = self._image.size
            self.orientation = _orientation(self._image)
            if header.format == "TIFF" and self.orientation != 1:
                # this orientation comes from XMP metadata
                raise BadFileError(f"is a TIFF with orientation {self.orientation}: save it upright")

    @property
    def bits(self) -> int:
        """Number of bits that the samples of a 16-bit image need; 0 for an image with 8 bits per channel."""
        return self._deep.bits if self._deep else 0

    def rgb(self, bits: int) -> Image.Image:
        """Decode to three channels, without applying the orientation.

        Args:
            bits: Bit depth that 16-bit images are scaled from.
        """
        with decoding():
            return _as_mode("RGB", self._deep.image(bits) if self._deep else _without_alpha(self._load()))

    def mask(self, by_value: bool = False) -> Image.Image:
        """Decode to grey or, for a coloured mask, to three channels; 8 bits per channel, orientation not applied.

        Args:
            by_value: Return the values as stored in the file: a palette image's indices, or 0 to 15 for 4 bits.
        """
        with decoding():
            image = self._deep.mask() if self._deep else self._load()
            if by_value and image.mode == "P":
                return Image.fromarray(np.asarray(image))
            if image.mode == "P":
                _check_palette(image)
            image = _without_alpha(image)
            image = _as_mode("L" if image.mode in ("1", "L") else "RGB", image)
            return self._as_stored(image) if by_value else image

    def check(self) -> None:
        """Check a JPEG for damage that Pillow ignores.

        Raises:
            BadFileError: The file is truncated, or pixels are lost.
        """
        if self._format == "JPEG":
            with decoding():
                _check_jpeg(self._path)

    def done(self, bits: int) -> list[str]:
        """Return a description of each step that makes this an upright RGB image.

        Args:
            bits: Bit depth that 16-bit images are scaled from.
        """
        done = [] if self.mode == "RGB" else [f"{self.mode} to RGB"]
        if self._deep:
            done.append(f"{bits} bits scaled to 8")
        if self.orientation != 1:
            done.append(f"EXIF orientation {self.orientation} applied")
        return done

    def _load(self) -> Image.Image:
        with self._quiet():
            self._image.load()
        return self._image

    def _as_stored(self, image: Image.Image) -> Image.Image:
        """Undo Pillow's changes: it scales samples of fewer than 8 bits to 0…255, and inverts them if 0 is white."""
        bits = 1 if self.mode == "1" else min(self._bits, 8)
        if bits == 8 and not self._white_is_zero:
            return image
        samples = np.asarray(image)
        return Image.fromarray((255 - samples if self._white_is_zero else samples) // (255 // (2**bits - 1)))

    def _quiet(self) -> AbstractContextManager[object]:
        # libtiff, which Pillow uses, prints messages
        return captured_output() if self._format == "TIFF" else nullcontext()


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def write_png(image: Image.Image, path: Path) -> None:
    """Write a PNG without metadata.

    Raises:
        OSError: The file cannot be written.
    """
    image.info = {}
    image.save(path, "PNG", **COMPRESSION)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFileError(f"cannot be read: {error.strerror}") from None
    if not data:
        raise BadFileError("is empty (0 bytes)")
    if data.startswith(b"version https://git-lfs"):
        raise BadFileError("is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")
    return data


def _open(data: bytes, file_format: str) -> Image.Image:
    if file_format != "PNG":
        return _opened(data, file_format)
    try:
        image = _opened(data, file_format)
        # Pillow reads text that follows the pixels only when it loads the pixels
        image.load()
    except MemoryError:
        raise
    except Exception:
        # Pillow fails on metadata that is damaged or too large
        image = _opened(png.without_metadata(data), file_format)
    return image


def _opened(data: bytes, file_format: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=[file_format])
    # some cameras write further images after a JPEG; Pillow opens such a file as MPO
    if image.format != file_format or getattr(image, "n_frames", 1) > 1:
        raise BadFileError("contains several images, expected one")
    if image.width * image.height > MAX_PIXELS:
        raise too_large()
    return image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # Pillow raises various exceptions for damaged EXIF data; a viewer that cannot read it shows the image unrotated
    except Exception:
        return 1
    return orientation if is_turned(orientation) else 1


def _as_mode(mode: str, image: Image.Image) -> Image.Image:
    # Pillow would copy an image that has the mode already
    return image if image.mode == mode else image.convert(mode)


def _without_alpha(image: Image.Image) -> Image.Image:
    """Return the image without its alpha channel, which must be opaque."""
    if not image.has_transparency_data:
        return image
    if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise BadFileError("has transparent pixels: save it as RGB or grey, without alpha")
    return image.convert("L" if image.mode == "LA" else "RGB")


def _check_palette(image: Image.Image) -> None:
    """Refuse a palette that has one colour at several indices, as decoding to colours would merge these labels."""
    indices = [index for index, pixels in enumerate(image.histogram()) if pixels]
    palette = image.getpalette() or []
    if len({tuple(palette[3 * index : 3 * index + 3]) for index in indices}) < len(indices):
        listed = ", ".join(map(str, indices))
        raise BadFileError(f"has palette indices {listed}, some with the same colour: name the indices with --labels")


def _check_jpeg(path: Path) -> None:
    # libjpeg reports damage only in messages, which ITK, unlike Pillow, prints
    with captured_output() as messages, _name_for_itk(path) as name:
        try:
            sitk.ReadImage(name, imageIO="JPEGImageIO")
        except RuntimeError:
            raise BadFileError("is truncated or damaged") from None
    for message in messages:
        if "Premature end" in message or "Corrupt JPEG" in message:
            stray = re.search(r"(\d+) extraneous bytes", message)
            if stray is None or int(stray[1]) > _HARMLESS_STRAY_BYTES:
                raise BadFileError(f"is truncated or damaged ({message})")


@contextmanager
def _name_for_itk(path: Path) -> Iterator[str]:
    """Provide a UTF-8 name for a file: ITK aborts the process on any other name."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)

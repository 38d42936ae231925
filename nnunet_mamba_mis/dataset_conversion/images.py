"""Read images as distributed, without trust in what they claim, and write PNGs."""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import ExifTags, Image, UnidentifiedImageError

# Pillow's zlib level: 1 writes photographs four times as fast as the default (6) and takes 13 % more room
COMPRESSION_LEVEL = 1

# the largest images of the datasets have 30 million
_MAX_PIXELS = 80_000_000

# stray bytes before a marker are skipped by every decoder and cost no pixel; many of them are pixels that got lost
_HARMLESS_STRAY_BYTES = 16

_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}

# a JPEG followed by more pictures, as some cameras write
_SEVERAL_JPEGS = "MPO"

# of Pillow's modes: those with 8 bits a channel at most
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa"}

# EXIF orientation → what brings the pixels upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadFileError(Exception):
    """A file that cannot be used; its text is the reason, to be read after the file's path."""


class SourceImage:
    """A file's bytes and what its header says; pixels are decoded on demand.

    Args:
        path: Of the file.

    Raises:
        BadFileError: It is no image, has too many pixels or another number of bits than 8.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        data = _bytes(path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._image = _open(data)
        if self._image.format == _SEVERAL_JPEGS or getattr(self._image, "n_frames", 1) > 1:
            raise BadFileError("holds several pictures, expected one")
        suffixes = _FORMATS[str(self._image.format)]
        if path.suffix.lower() not in suffixes:
            raise BadFileError(f"is in truth a {suffixes[0]} file: rename it")
        if self._image.mode not in _MODES:
            raise BadFileError(
                f"has pixels of Pillow's mode {self._image.mode}: save it as RGB or grey, 8 bits a channel"
            )
        self.mode: str = self._image.mode
        self.size: tuple[int, int] = self._image.size
        self.orientation = _orientation(self._image)
        if self._image.format == "TIFF" and self.orientation != 1:
            # Pillow applies it only in part
            raise BadFileError(f"is a TIFF with orientation {self.orientation}: save it upright")

    def rgb(self) -> Image.Image:
        """Decode as three channels, as stored: orientation is not applied."""
        return _without_alpha(self._load()).convert("RGB")

    def mask(self, by_value: bool = False) -> Image.Image:
        """Decode as grey if all is grey, else as three channels, as stored.

        Args:
            by_value: Give the values that the file holds: a palette image's indices, 0 and 1 of one bit.
        """
        image = self._load()
        if by_value and image.mode in ("1", "P"):
            return Image.fromarray(np.asarray(image).astype(np.uint8))
        if image.mode == "P":
            _check_palette(image)
        image = _without_alpha(image)
        return image.convert("L" if image.mode in ("1", "L") else "RGB")

    def check(self) -> None:
        """Decode and report damage, which Pillow ignores in a JPEG; decoding again is free.

        Raises:
            BadFileError: It is truncated, or pixels got lost.
        """
        if self._image.format == "JPEG":
            self._image = _checked_jpeg(self._path)

    def _load(self) -> Image.Image:
        try:
            self._image.load()
        except Image.DecompressionBombError:
            raise BadFileError(_too_large()) from None
        # Pillow's decoders raise these and others on damaged files
        except (OSError, SyntaxError, ValueError, IndexError, EOFError, RuntimeError) as error:
            raise BadFileError(f"is truncated or damaged ({error})") from None
        return self._image


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def write_png(image: Image.Image, path: Path) -> None:
    """Write a PNG without metadata.

    Raises:
        OSError: It cannot be written.
    """
    image.info = {}
    image.save(path, "PNG", compress_level=COMPRESSION_LEVEL)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFileError(f"cannot be read: {error.strerror}") from None
    if not data:
        raise BadFileError("is empty (0 bytes)")
    if data.startswith(b"version https://git-lfs"):
        raise BadFileError("is a Git LFS pointer, not the file itself: run `git lfs pull` where it came from")
    return data


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=list(_FORMATS))
        except UnidentifiedImageError:
            raise BadFileError("is not an image: its content is neither JPEG, PNG, BMP nor TIFF") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise BadFileError(_too_large()) from None
        except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
            raise BadFileError(f"is truncated or damaged ({error})") from None
    if image.width * image.height > _MAX_PIXELS:
        raise BadFileError(_too_large())
    return image


def _too_large() -> str:
    return f"claims more than {_MAX_PIXELS // 10**6} million pixels: not decoded"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        # a viewer that cannot read it does not turn the image either
        return 1


def _without_alpha(image: Image.Image) -> Image.Image:
    """Return the image without an alpha channel that hides nothing."""
    if not image.has_transparency_data:
        return image
    if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise BadFileError("has transparent pixels: save it as RGB or grey, without alpha")
    return image.convert("L" if image.mode == "LA" else "RGB")


def _check_palette(image: Image.Image) -> None:
    """Refuse different indices of one colour: as colours, what they mean would be lost."""
    indices = [index for index, pixels in enumerate(image.histogram()) if pixels]
    palette = image.getpalette() or []
    if len({tuple(palette[3 * index : 3 * index + 3]) for index in indices}) < len(indices):
        listed = ", ".join(map(str, indices))
        raise BadFileError(f"holds the palette indices {listed}, some in the same colour: --labels tells them apart")


def _checked_jpeg(path: Path) -> Image.Image:
    # libjpeg reports damage on the console alone, and ITK lets it
    with _captured_output() as messages:
        try:
            image = sitk.ReadImage(str(path), imageIO="JPEGImageIO")
        except RuntimeError:
            raise BadFileError("is truncated or damaged") from None
    for message in messages:
        if "Premature end" in message or "Corrupt JPEG" in message:
            stray = re.search(r"(\d+) extraneous bytes", message)
            if stray is None or int(stray[1]) > _HARMLESS_STRAY_BYTES:
                raise BadFileError(f"is truncated or damaged ({message})")
    return Image.fromarray(sitk.GetArrayFromImage(image))


@contextmanager
def _captured_output() -> Iterator[list[str]]:
    """Keep what C libraries print off the console, and fill the list with its lines at the end."""
    messages: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield messages
        finally:
            with suppress(OSError, AttributeError, TypeError):  # no C library by this name, as on Windows
                ctypes.CDLL(None).fflush(None)  # or it would print later what it keeps in its buffer
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)
        file.seek(0)
        messages += file.read().decode(errors="replace").splitlines()

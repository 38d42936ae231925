"""Read images as distributed, without trust in what they claim, and write PNGs."""

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

# Pillow's zlib settings: level 1 writes photographs four times as fast as the default (6), and runs alone (RLE), which
# is all that filtered photographs and label maps have, still faster, to smaller files than level 1 by itself
COMPRESSION = {"compress_level": 1, "compress_type": zlib.Z_RLE}

# stray bytes before a marker are skipped by every decoder and cost no pixel; many of them are pixels that got lost
_HARMLESS_STRAY_BYTES = 16

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


class SourceImage:
    """A file's bytes and what its header says; pixels are decoded on demand.

    Args:
        path: Of the file.
        sha256: What its bytes must be, if it was read before.

    Raises:
        BadFileError: It is no image, has too many pixels, other samples than of 8 or 16 bits, or has changed.
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
                raise BadFileError("changed while it was converted")
            header = read_header(data)
            if path.suffix.lower() not in header.suffixes:
                raise BadFileError(f"is in truth a {header.suffixes[0]} file: rename it")
            self._format = header.format
            self._bits = header.bits
            self._white_is_zero = header.white_is_zero
            self._deep = SixteenBits(data, header) if header.bits == 16 else None
            if self._deep and header.format == "TIFF":
                # of which Pillow opens only some, and whose orientation has been seen to
                self.mode, self.size, self.orientation = self._deep.mode, header.size, 1
                return
            with self._quiet():
                self._image = _open(data, header.format)
            if self._image.mode not in _MODES and not self._deep:
                raise BadFileError(
                    f"has pixels of Pillow's mode {self._image.mode}: save it as RGB or grey, 8 or 16 bits a channel"
                )
            self.mode = self._deep.mode if self._deep else self._image.mode
            self.size = self._image.size
            self.orientation = _orientation(self._image)
            if header.format == "TIFF" and self.orientation != 1:
                # in XMP
                raise BadFileError(f"is a TIFF with orientation {self.orientation}: save it upright")

    @property
    def bits(self) -> int:
        """How many bits the samples of a 16-bit image need; 0 for an image with 8 bits a channel."""
        return self._deep.bits if self._deep else 0

    def rgb(self, bits: int) -> Image.Image:
        """Decode as three channels, as stored: orientation is not applied.

        Args:
            bits: What 16-bit images are scaled from.
        """
        with decoding():
            return _as_mode("RGB", self._deep.image(bits) if self._deep else _without_alpha(self._load()))

    def mask(self, by_value: bool = False) -> Image.Image:
        """Decode as grey if all is grey, else as three channels, as stored and with 8 bits a channel.

        Args:
            by_value: Give the values that the file holds: a palette image's indices, 0 to 15 of four bits.
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
        """Report damage that Pillow, which decodes it all the same, ignores in a JPEG.

        Raises:
            BadFileError: It is truncated, or pixels got lost.
        """
        if self._format == "JPEG":
            with decoding():
                _check_jpeg(self._path)

    def done(self, bits: int) -> list[str]:
        """Return what making it an upright RGB image does, in a few words each.

        Args:
            bits: What 16-bit images are scaled from.
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
        """Undo what Pillow does to samples: it spreads fewer than 8 bits over 0 to 255, and makes 0 black."""
        bits = 1 if self.mode == "1" else min(self._bits, 8)
        if bits == 8 and not self._white_is_zero:
            return image
        samples = np.asarray(image)
        return Image.fromarray((255 - samples if self._white_is_zero else samples) // (255 // (2**bits - 1)))

    def _quiet(self) -> AbstractContextManager[object]:
        # libtiff, in Pillow, prints
        return captured_output() if self._format == "TIFF" else nullcontext()


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def write_png(image: Image.Image, path: Path) -> None:
    """Write a PNG without metadata.

    Raises:
        OSError: It cannot be written.
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
        raise BadFileError("is a Git LFS pointer, not the file itself: run `git lfs pull` where it came from")
    return data


def _open(data: bytes, file_format: str) -> Image.Image:
    if file_format != "PNG":
        return _opened(data, file_format)
    try:
        image = _opened(data, file_format)
        # Pillow reads text that follows the pixels when it loads them
        image.load()
    except MemoryError:
        raise
    except Exception:
        # Pillow gives up on metadata that it finds damaged or too large
        image = _opened(png.without_metadata(data), file_format)
    return image


def _opened(data: bytes, file_format: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=[file_format])
    # a JPEG that more pictures follow, as some cameras write them, is MPO to Pillow
    if image.format != file_format or getattr(image, "n_frames", 1) > 1:
        raise BadFileError("holds several pictures, expected one")
    if image.width * image.height > MAX_PIXELS:
        raise too_large()
    return image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # Damaged EXIF, whatever Pillow makes of it: a viewer that cannot read it does not turn the image either
    except Exception:
        return 1
    return orientation if is_turned(orientation) else 1


def _as_mode(mode: str, image: Image.Image) -> Image.Image:
    # where there is nothing to convert, Pillow copies
    return image if image.mode == mode else image.convert(mode)


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


def _check_jpeg(path: Path) -> None:
    # libjpeg reports damage on the console alone, and ITK lets it
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
    """Give a name for a file that is UTF-8: any other aborts the process in ITK."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)

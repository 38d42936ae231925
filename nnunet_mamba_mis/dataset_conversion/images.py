"""Check a case's files and write them as nnU-Net's PNGs, with SimpleITK."""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_mamba_mis.dataset_conversion.base import Case

# zlib level: 3 writes photographs 2.3 times as fast as the default (6) and takes 6 % more room; 9 takes 4 times as long
_COMPRESSION_LEVEL = 3

# masks are 0 and 255, save for JPEG noise (up to 7, from 248) and frame borders painted dark grey (up to 112)
_FOREGROUND_ABOVE = 127

# stray bytes before a marker are skipped by every decoder and cost no pixel; many of them are pixels that got lost
_HARMLESS_STRAY_BYTES = 16

# those that stand alone or are escapes in the pixel data left out
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)

_BMP_HEADER_SIZE = 54

_SIGNATURES = {
    b"\xff\xd8\xff": (".jpg", ".jpeg"),
    b"\x89PNG\r\n\x1a\n": (".png",),
    b"BM": (".bmp",),
    b"II*\0": (".tif", ".tiff"),
    b"MM\0*": (".tif", ".tiff"),
}


class BadFileError(Exception):
    """A file that cannot be used; its text is the reason, to be read after the file's path."""


def use_one_thread() -> None:
    """Keep ITK from starting threads of its own in this process."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def case_problems(case: Case) -> list[str]:
    """Return what is wrong with a case, one text a file, without decoding its pixels."""
    sizes: list[tuple[int, ...]] = []
    problems = []
    for path in (case.image, case.mask):
        try:
            sizes.append(_checked_size(path))
        except BadFileError as error:
            problems.append(f"{path} {error}")
    if len(set(sizes)) > 1:
        image_size, mask_size = (" × ".join(map(str, size)) for size in sizes)
        problems.append(f"{case.mask} is {mask_size} pixels, but its image {case.image} is {image_size}")
    return problems


def convert_case(case: Case, image_file: Path, label_file: Path) -> str | None:
    """Write a case as an RGB image and a label map of 0 and 1.

    Args:
        case: a case without `case_problems`.
        image_file: the PNG to write the image to.
        label_file: the PNG to write the label map to.

    Returns:
        What is wrong with one of its files, if something is.

    Raises:
        OSError: a PNG cannot be written.
    """
    path = case.image
    try:
        image = _as_rgb(_read(path))
        path = case.mask
        label = _as_label(_read(path))
    except BadFileError as error:
        return f"{path} {error}"
    _write(image, image_file)
    _write(label, label_file)
    return None


def _checked_size(path: Path) -> tuple[int, ...]:
    _check_content(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _captured_output():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise BadFileError(_reason(path, error)) from None
    if reader.GetDimension() != 2:
        raise BadFileError(f"has {reader.GetDimension()} dimensions, expected a single 2D image")
    if reader.GetPixelID() not in (sitk.sitkUInt8, sitk.sitkVectorUInt8):
        pixel_type = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise BadFileError(f"has pixels of type {pixel_type}: save it with 8 bits a channel")
    if reader.GetNumberOfComponents() not in (1, 3):
        raise BadFileError(f"has {reader.GetNumberOfComponents()} channels: save it as RGB or grey, without alpha")
    return reader.GetSize()


def _check_content(path: Path) -> None:
    """Refuse what is no image at all, with a better reason than ITK gives."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise BadFileError(f"cannot be read: {error.strerror}") from None
    if not head:
        raise BadFileError("is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs"):
        raise BadFileError("is a Git LFS pointer, not the file itself: run `git lfs pull` where it came from")
    if not head.startswith(tuple(_SIGNATURES)):
        raise BadFileError("is not an image: its content is neither JPEG, PNG, BMP nor TIFF")
    # ITK fails on a truncated PNG or TIFF, but fills what a JPEG or BMP lacks with some colour
    if (head.startswith(b"\xff\xd8") and not _jpeg_has_end(path)) or path.stat().st_size < _bmp_size(head):
        raise BadFileError("is truncated")


def _jpeg_has_end(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        if file.read() == b"\xff\xd9":
            return True
        file.seek(0)
        data = file.read()
    # Bytes follow the end, or there is none. Walk from marker to marker, as a thumbnail in the header has an end too.
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        if marker[1] == b"\xd9":
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False


def _bmp_size(head: bytes) -> int:
    """Return how large a BMP file must be at least, 0 for other formats and compressed BMPs."""
    if not head.startswith(b"BM"):
        return 0
    if len(head) < _BMP_HEADER_SIZE:
        return _BMP_HEADER_SIZE
    offset, _, width, height, _, bits, compression = struct.unpack("<IIiiHHI", head[10:34])
    return offset + (width * bits + 31) // 32 * 4 * abs(height) if compression == 0 else 0


def _read(path: Path) -> sitk.Image:
    with _captured_output() as messages:
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise BadFileError(_reason(path, error)) from None
    for message in messages:
        if "Premature end" in message or "Corrupt JPEG" in message:
            stray = re.search(r"(\d+) extraneous bytes", message)
            if stray is None or int(stray[1]) > _HARMLESS_STRAY_BYTES:
                raise BadFileError(f"is damaged ({message})")
    return image


def _reason(path: Path, error: RuntimeError) -> str:
    if "Unknown PixelType" in str(error):
        return "has an unsupported pixel format (grey with alpha?): save it as RGB or grey, without alpha"
    with path.open("rb") as file:
        head = file.read(8)
    suffixes = next((names for signature, names in _SIGNATURES.items() if head.startswith(signature)), ())
    if suffixes and path.suffix.lower() not in suffixes:
        return f"is in truth a {suffixes[0]} file: rename it"
    return "is truncated or damaged"


def _as_rgb(image: sitk.Image) -> sitk.Image:
    return image if image.GetNumberOfComponentsPerPixel() == 3 else sitk.Compose(image, image, image)


def _as_label(mask: sitk.Image) -> sitk.Image:
    values = sitk.GetArrayViewFromImage(mask)
    if values.ndim == 3:
        # the maximum, not the mean: (255, 0, 0) is an annotation too. For grey masks, as Kvasir-SEG's, both agree.
        values = values.max(axis=2)
    foreground = values > _FOREGROUND_ABOVE
    if values.any() and not foreground.any():
        raise BadFileError(f"has no value above {values.max()}, expected a mask of 0 and 255")
    return sitk.GetImageFromArray(foreground.astype(np.uint8))


def _write(image: sitk.Image, path: Path) -> None:
    with _captured_output():
        try:
            sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=_COMPRESSION_LEVEL)
        except RuntimeError as error:
            reason = re.search(r"Reason: (.+)", str(error))
            raise OSError(reason[1] if reason else "ITK failed to write a file") from None


@contextmanager
def _captured_output() -> Iterator[list[str]]:
    """Keep what ITK's C libraries print off the console, and fill the list with its lines at the end.

    They write to the file descriptors whatever ITK's warning switch says, and libjpeg tells of damage in no other way.
    """
    messages: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield messages
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)
        file.seek(0)
        messages += file.read().decode(errors="replace").splitlines()

"""Every decoder failure is reported as a bad file, and reading is reproducible."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nnunet_mamba_mis.dataset_conversion.decoding import BadFileError
from nnunet_mamba_mis.dataset_conversion.images import SourceImage, upright
from support.convert_trees import photograph

RGB = photograph((20, 24))
ROUNDS = 300
DEEP = RGB.astype(np.uint16) * 257
# bytes to insert into files: small and large numbers, and starts of JPEG segments
INTERESTING = [b"\0", b"\xff", b"\x80", b"\1\0", b"\xff\xd8", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]


def saved(file_format: str, pixels: np.ndarray | Image.Image = RGB, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file := io.BytesIO(), file_format, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    tifffile.imwrite(file := io.BytesIO(), pixels, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@cache
def seeds() -> dict[str, list[bytes]]:
    """Return intact files of each format."""
    palette = Image.fromarray(RGB).quantize(16)
    two_pages = io.BytesIO()
    tifffile.imwrite(two_pages, np.stack([RGB, RGB]), photometric="rgb")
    return {
        ".jpg": [
            saved("JPEG", exif=turned()),
            saved("JPEG", progressive=True),
            saved("JPEG", RGB[..., 0], quality=30),
            saved("JPEG", subsampling=0, restart_marker_blocks=2, comment=b"x" * 20),
        ],
        ".png": [
            saved("PNG", exif=turned()),
            saved("PNG", RGB[..., 0] > 99),
            saved("PNG", palette, transparency=255),
            saved("PNG", np.dstack([RGB, np.full_like(RGB[..., :1], 255)])),
            saved("PNG", DEEP[..., 0]),
            deep_png(),
        ],
        ".bmp": [saved("BMP"), saved("BMP", palette), saved("BMP", RGB[..., 0] > 99)],
        ".tif": [
            saved("TIFF"),
            saved("TIFF", RGB[..., 0] > 99, compression="group4"),
            saved("TIFF", palette, compression="tiff_lzw"),
            saved("TIFF", compression="jpeg"),
            tiff(RGB, photometric="rgb", tile=(16, 16), compression="zlib"),
            tiff(DEEP, photometric="rgb", bigtiff=True),
            tiff(DEEP, photometric="rgb", compression="lzw", rowsperstrip=5),
            tiff(DEEP[..., 0]),
            two_pages.getvalue(),
        ],
        ".gif": [saved("GIF", palette), saved("GIF", RGB[..., 0], comment=b"x" * 20)],
    }


def deep_png() -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    header = struct.pack(">IIBBBBB", DEEP.shape[1], DEEP.shape[0], 16, 2, 0, 0, 0)
    return with_checksums([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def with_checksums(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, position = [], 8
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        chunks.append((name, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Change, remove, insert or repeat a few bytes, mostly near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        at = int(len(changed) * random.random() ** random.choice([1, 3]))
        match random.integers(6):
            case 0:
                changed[at : at + 1] = bytes(random.integers(0, 256, 1, dtype=np.uint8))
            case 1:
                value = INTERESTING[random.integers(len(INTERESTING))]
                changed[at : at + len(value)] = value
            case 2:
                del changed[at : at + int(random.integers(1, 9))]
            case 3:
                changed[at:at] = INTERESTING[random.integers(len(INTERESTING))]
            case 4:
                changed[at:at] = changed[max(0, at - 12) : at]
            case 5 if random.random() < 0.3:
                del changed[at:]
    return bytes(changed)


def mutated_png(data: bytes, random: np.random.Generator) -> bytes:
    """Mostly change one chunk and correct the checksums, as otherwise no damage would reach the decoders."""
    if random.random() < 0.2:
        return mutated(data, random)
    chunks = chunks_of(data)
    i = random.integers(len(chunks))
    chunks[i] = (chunks[i][0], mutated(chunks[i][1], random))
    return with_checksums(chunks)


def outcome(path: Path, read: Callable[[SourceImage], Image.Image]) -> str | bytes:
    """Read a file as the converter does: check it, then read it again and convert it."""
    try:
        image = SourceImage(path)
        image.check()
        checked = read(image)
    except BadFileError as error:
        return str(error)
    image = SourceImage(path, image.sha256)
    assert read(image) == checked
    return upright(checked, image.orientation).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".gif"])
def test_a_mutated_file_is_an_image_or_a_bad_file(suffix: str, tmp_path: Path, capfd) -> None:
    change: Callable[[bytes, np.random.Generator], bytes] = mutated_png if suffix == ".png" else mutated
    random = np.random.default_rng(7)
    path = tmp_path / f"file{suffix}"
    decoded = 0
    for _ in range(ROUNDS):
        for data in seeds()[suffix]:
            path.write_bytes(change(data, random))
            outcome(path, SourceImage.mask)
            decoded += isinstance(outcome(path, lambda image: image.rgb(image.bits)), bytes)
    # some mutations are harmless and some are not
    assert 0.05 < decoded / (ROUNDS * len(seeds()[suffix])) < 0.95
    assert capfd.readouterr() == ("", "")

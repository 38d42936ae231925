"""Tiny datasets of real image files, and the command that converts them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return an image of (height, width) that is like no other seed's."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 200, (8, 8, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
    return (smooth + random.integers(0, 50, (*size, 3))).clip(0, 255).astype(np.uint8)


def disc(size: tuple[int, int], value: int = 255) -> np.ndarray:
    y, x = np.ogrid[: size[0], : size[1]]
    return np.where((y - size[0] / 2) ** 2 + (x - size[1] / 3) ** 2 < 50, value, 0).astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    Image.fromarray(pixels).save(path, **quality, **options)


def write_pair(image: Path, mask: Path, seed: int, size: tuple[int, int] = (24, 32)) -> None:
    write(image, photograph(size, seed))
    write(mask, disc(size))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nnunet_mamba_mis.cli", "convert", *map(str, arguments)]


def run(*arguments: object, preexec_fn: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, preexec_fn=preexec_fn)


def error_of(*arguments: object, preexec_fn: Callable[[], None] | None = None) -> str:
    """Return the message of a command that has to fail as a user may expect it to."""
    result = run(*arguments, preexec_fn=preexec_fn)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("mamba_mis: error: ")
    assert "Traceback" not in result.stderr
    # what ITK and its libraries say
    for noise in ("WARNING", "ITK", "itk", "HDF5", "Exception"):
        assert noise not in result.stderr
    return result.stderr


def write_kvasir(source: Path, number: int = 6) -> Path:
    """Write Kvasir-SEG in small: pairs of RGB JPEGs of different sizes, in a folder of a folder."""
    for i in range(number):
        size = (24 + i, 40 - i)
        write(source / "Kvasir-SEG" / "Kvasir-SEG" / "images" / f"cju{i}.jpg", photograph(size, seed=i))
        write(source / "Kvasir-SEG" / "Kvasir-SEG" / "masks" / f"cju{i}.jpg", rgb(disc(size)))
    return source

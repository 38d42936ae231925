"""Draw images and masks for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def disc(row: float, column: float, radius: float, size: tuple[int, int] = (48, 64), value: int = 1) -> np.ndarray:
    """Return a label map (H, W) of 0 with a disc of `value`."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.where((rows - row) ** 2 + (columns - column) ** 2 <= radius**2, value, 0).astype(np.uint8)


def centred_disc(size: tuple[int, int], value: int = 255) -> np.ndarray:
    """Return a label map (H, W) of 0 with a disc of `value` at half the height and a third of the width."""
    return disc(size[0] / 2, size[1] / 3, 7, size, value)


def disc_image(
    seed: int, size: tuple[int, int] = (32, 30), radius: float = 6, colour: tuple[int, ...] = (0,), contrast: int = 150
) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy image (channels, H, W) with a bright disc at a random position, and the disc's label map."""
    rng = np.random.default_rng(seed)
    mask = disc(size[0] * rng.uniform(0.3, 0.7), size[1] * rng.uniform(0.3, 0.7), radius, size)
    noise = rng.integers(0, 60, (len(colour), *size))
    return (noise + np.array(colour)[:, None, None] + contrast * mask).astype(np.uint8), mask


def save_image(path: Path, width: int, height: int) -> None:
    """Write a black RGB image."""
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)

"""Images and masks for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def disc(size: tuple[int, int], value: int = 255) -> np.ndarray:
    """A disc of `value` on 0, (height, width)."""
    y, x = np.ogrid[: size[0], : size[1]]
    return np.where((y - size[0] / 2) ** 2 + (x - size[1] / 3) ** 2 < 50, value, 0).astype(np.uint8)


def save_image(path: Path, width: int, height: int) -> None:
    """Write a black RGB image."""
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)

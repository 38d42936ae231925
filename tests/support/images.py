"""Masks for tests."""

from __future__ import annotations

import numpy as np


def disc(size: tuple[int, int], value: int = 255) -> np.ndarray:
    """A disc of `value` on 0, (height, width)."""
    y, x = np.ogrid[: size[0], : size[1]]
    return np.where((y - size[0] / 2) ** 2 + (x - size[1] / 3) ** 2 < 50, value, 0).astype(np.uint8)

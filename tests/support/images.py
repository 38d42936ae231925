"""Masks that tests draw."""

from __future__ import annotations

import numpy as np


def disc(row: float, column: float, radius: float, size: tuple[int, int] = (48, 64), value: int = 1) -> np.ndarray:
    """A label map (H, W) of 0 with a disc of `value`."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.where((rows - row) ** 2 + (columns - column) ** 2 <= radius**2, value, 0).astype(np.uint8)

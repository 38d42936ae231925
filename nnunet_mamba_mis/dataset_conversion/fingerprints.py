"""Fingerprints of images, which are nearly equal for copies at another size, quality or brightness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# each bit records whether a cell of a 16 × 16 grid is brighter than its left neighbour
_SIDE = 16
_BITS = _SIDE**2

# an image whose cells differ less than this is flat, and its fingerprint would be noise
_FLAT = 16

# Largest number of bits, of 256, that differ between near duplicates. Of the 2.3 million pairs of ISIC 2017's 2150
# images, six differ in at most 19 bits, and each of these six shows a single lesion; the next pairs differ in 23 bits,
# and each shows two lesions. The most similar pair of Kvasir-SEG differs in 47 bits.
_NEAR = 20
_AGREEMENT = _BITS - 2 * _NEAR  # equal bits minus different ones

# rows to compare at a time: 40 MB for 10 000 images
_ROWS = 1024


def fingerprint(image: Image.Image) -> bytes:
    """Return the 256-bit fingerprint of an upright RGB image, or nothing for a flat one."""
    small = image.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX, reducing_gap=2).convert("L")
    values = np.asarray(small)
    if np.ptp(values) < _FLAT:
        return b""
    return np.packbits(values[:, 1:] > values[:, :-1]).tobytes()


def from_hex(text: object) -> bytes:
    """Return the fingerprint that a report contains as text, or nothing if it is invalid."""
    try:
        bits = bytes.fromhex(text)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return b""
    return bits if len(bits) == _BITS // 8 else b""


def near_any(fingerprints: Sequence[bytes], others: Sequence[bytes]) -> list[bool]:
    """Return for each fingerprint whether one of the others is of (nearly) the same image; False for empty ones."""
    signs, known = _signs(fingerprints), _signs([other for other in others if other])
    near: list[bool] = []
    for start in range(0, len(signs), _ROWS):
        near.extend((signs[start : start + _ROWS] @ known.T >= _AGREEMENT).any(axis=1).tolist())
    return near


def near_pairs(fingerprints: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the positions of each pair of fingerprints of (nearly) the same image, the smaller position first."""
    signs = _signs(fingerprints)
    for start in range(0, len(signs), _ROWS):
        agreement = signs[start : start + _ROWS] @ signs[start:].T
        for row, column in np.argwhere(agreement >= _AGREEMENT):
            if row < column:
                yield start + int(row), start + int(column)


def _signs(fingerprints: Sequence[bytes]) -> NDArray[np.float32]:
    """Return bits as ±1, and empty fingerprints as 0, so that a dot product counts equal bits minus different ones."""
    signs = np.zeros((len(fingerprints), _BITS), np.float32)
    for row, fingerprint in zip(signs, fingerprints, strict=True):
        if fingerprint:
            row[:] = np.unpackbits(np.frombuffer(fingerprint, np.uint8)) * 2.0 - 1
    return signs

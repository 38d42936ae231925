"""nnU-Net's sliding window: positions of tiles, their weights, and the sum of their logits."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TypeAlias

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor
from torch.nn import functional as F

Size: TypeAlias = tuple[int, int]
# (slice of the volume, first row, first column)
Tile: TypeAlias = tuple[int, int, int]

_STEP = 0.5
# nnU-Net's value; it keeps small weights from underflowing to 0 in half precision
_LARGEST_WEIGHT = 10


class Canvas:
    """An image that is being predicted, with the weighted sum of its tiles' logits.

    The sum is in half precision and in nnU-Net's order, so that it has the rounding errors of nnU-Net's sum.

    Args:
        data: Image (channels, slices, H, W).
        tile_size: Height and width of tiles; a smaller image is padded with zeros on all sides.
        folds: Number of networks.
        heads: Number of logit channels.
        device: Device that holds the image and the sum.
    """

    def __init__(self, data: Tensor, tile_size: Size, folds: int, heads: int, device: torch.device) -> None:
        self._tile_size = tile_size
        size = data.shape[-2:]
        missing = [max(0, tile - side) for tile, side in zip(tile_size, size, strict=True)]
        # an odd amount of padding puts the extra row below and the extra column to the right
        before = [side // 2 for side in missing]
        top, left = before
        self._inside = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        self._data = F.pad(data, (left, missing[1] - left, top, missing[0] - top)).to(device)
        self._padded_size: Size = tuple(self._data.shape[-2:])  # type: ignore[assignment]
        self._sums = torch.zeros((folds, heads, *self._data.shape[1:]), dtype=torch.half, device=device)
        self.tiles: list[Tile] = list(_tiles(data.shape[1], self._padded_size, tile_size))
        self._left = len(self.tiles) * folds

    @property
    def is_complete(self) -> bool:
        """Whether every network has predicted every tile."""
        return self._left == 0

    def patch(self, tile: Tile) -> Tensor:
        """Return the tile's part of the image (channels, H, W)."""
        index, rows, columns = self._part(tile)
        return self._data[:, index, rows, columns]

    def add(self, fold: int, tile: Tile, logits: Tensor) -> None:
        """Add a network's logits (heads, H, W) for a tile; tiles must be added in the order of `tiles`."""
        weights = _weights(self._tile_size, self._sums.device)
        index, rows, columns = self._part(tile)
        self._sums[fold, :, index, rows, columns] += logits * weights
        self._left -= 1

    def logits(self) -> Tensor:
        """Return the mean logits (heads, slices, H, W) over tiles and networks, in half precision, on the CPU.

        Raises:
            OverflowError: A value exceeds the range of half precision.
        """
        total = _sums_of_weights(self._padded_size, self._tile_size, self._sums.device)
        means = (self._sums / total)[self._inside]
        if torch.isinf(means).any():
            raise OverflowError("logits exceed the range of half precision, in which nnU-Net sums them")
        mean, *others = means.cpu()
        for other in others:
            mean += other
        return mean / len(means) if others else mean

    def _part(self, tile: Tile) -> tuple[int, slice, slice]:
        (height, width), (index, row, column) = self._tile_size, tile
        return index, slice(row, row + height), slice(column, column + width)


def _tiles(slices: int, size: Size, tile_size: Size) -> Iterator[Tile]:
    rows, columns = compute_steps_for_sliding_window(size, tile_size, _STEP)
    for index in range(slices):
        for row in rows:
            for column in columns:
                yield index, row, column


def _weights(tile_size: Size, device: torch.device) -> Tensor:
    return compute_gaussian(tile_size, sigma_scale=1 / 8, value_scaling_factor=_LARGEST_WEIGHT, device=device)


@functools.lru_cache(maxsize=8)
def _sums_of_weights(size: Size, tile_size: Size, device: torch.device) -> Tensor:
    weights = _weights(tile_size, device)
    total = torch.zeros(size, dtype=torch.half, device=device)
    for _, row, column in _tiles(1, size, tile_size):
        total[row : row + tile_size[0], column : column + tile_size[1]] += weights
    return total

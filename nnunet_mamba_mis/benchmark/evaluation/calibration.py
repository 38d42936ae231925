"""Compare predicted probabilities with the frequency of a class: reliability and calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_mamba_mis.benchmark.label_maps import Mask

# bins of equal width, as in Guo et al., On calibration of modern neural networks (2017)
BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Pixels binned by their predicted probability of one class.

    Args:
        pixels: Number of pixels in each bin.
        probability: Sum of the probabilities in each bin.
        positives: Number of pixels of the class in each bin.
    """

    pixels: NDArray[np.int64]
    probability: NDArray[np.float64]
    positives: NDArray[np.int64]

    @classmethod
    def measure(cls, probability: NDArray[np.floating], truth: Mask, counted: Mask | None = None) -> Reliability:
        """Bin the pixels of an image.

        Args:
            probability: Probability of the class, between 0 and 1; (H, W) or (D, H, W).
            truth: Mask of the class, of the same shape.
            counted: Pixels to include; all by default.
        """
        where = slice(None) if counted is None else counted.ravel()
        values, positive = probability.ravel()[where].astype(np.float64), truth.ravel()[where]
        place = np.minimum((values * BINS).astype(np.int64), BINS - 1)
        return cls(
            np.bincount(place, minlength=BINS),
            np.bincount(place, values, BINS).astype(np.float64),
            np.bincount(place[positive], minlength=BINS),
        )

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.pixels + other.pixels, self.probability + other.probability, self.positives + other.positives
        )

    @property
    def error(self) -> float:
        """Expected calibration error: mean over pixels of |mean probability - frequency of the class| in their bin."""
        return float(np.abs(self.probability - self.positives).sum() / self.pixels.sum())

    @property
    def bias(self) -> float:
        """Mean probability minus the frequency of the class: positive if probabilities are too high on average."""
        return float((self.probability.sum() - self.positives.sum()) / self.pixels.sum())

    @property
    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean probability and frequency of the class in each bin that contains pixels."""
        filled = self.pixels > 0
        pixels = self.pixels[filled]
        return self.probability[filled] / pixels, self.positives[filled] / pixels

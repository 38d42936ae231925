"""How well a class of one case was segmented, and of all cases' pixels taken together.

Surfaces are MONAI's with subvoxels, which follow DeepMind's surface-distance: the boundary runs between pixels, and
each piece of it counts with its length (2D) or area (3D).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_mamba_mis.benchmark.evaluation.calibration import Reliability
from nnunet_mamba_mis.benchmark.label_maps import Mask

# metric → its name in tables
METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "hd95": "HD95",
    "nsd": "NSD",
}

_UNDEFINED = float("nan")


@dataclass(frozen=True)
class Counts:
    """Pixels (or voxels) of a class: true and false positives, false and true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def both_empty(self) -> bool:
        """Whether the class is neither in the ground truth nor in the prediction."""
        return self.tp + self.fp + self.fn == 0

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN)."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def mean_iou(self) -> float:
        """Mean of the IoU of the class and that of all the rest, which papers on skin and polyps call mIoU."""
        return (self.iou + _ratio(self.tn, self.tn + self.fp + self.fn)) / 2

    @property
    def precision(self) -> float:
        """TP / (TP + FP); 0 where nothing was predicted though there was something to find."""
        return 0.0 if self.tp + self.fp == 0 < self.fn else _ratio(self.tp, self.tp + self.fp)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN); NaN where there was nothing to find."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP); NaN where the class covers the image."""
        return _ratio(self.tn, self.tn + self.fp)


@dataclass(frozen=True)
class Score:
    """Counts and distances of one class in one case; everything is NaN where the class is in neither mask.

    Args:
        counts: Of pixels.
        hd95: 95th percentile of the Hausdorff distance, in the unit of the spacing; the image's diagonal if one mask is
            empty.
        nsd: Normalised surface Dice at the tolerance; 0 if one mask is empty.
        reliability: Of the probabilities; None where they were not saved.
    """

    counts: Counts
    hd95: float
    nsd: float
    reliability: Reliability | None = None

    def value(self, metric: str) -> float:
        """Return a metric of METRICS; NaN where it is undefined."""
        if self.counts.both_empty:
            return _UNDEFINED
        return getattr(self if metric in ("hd95", "nsd") else self.counts, metric)


def count(truth: Mask, prediction: Mask, counted: Mask | None = None) -> Counts:
    """Count pixels.

    Args:
        truth: (H, W) or (D, H, W).
        prediction: Of the same shape.
        counted: Where pixels count; everywhere by default.
    """
    counted = np.ones_like(truth) if counted is None else counted
    pairs = ((truth, prediction), (~truth, prediction), (truth, ~prediction), (~truth, ~prediction))
    return Counts(*(int(np.count_nonzero(in_truth & predicted & counted)) for in_truth, predicted in pairs))


def score(
    truth: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float, counted: Mask | None = None
) -> Score:
    """Score one class of one case.

    Args:
        truth: (H, W) or (D, H, W).
        prediction: Of the same shape.
        spacing: Of each axis.
        tolerance: Of the normalised surface Dice, in the unit of the spacing.
        counted: Where pixels count (not where nnU-Net's ignore label is); everywhere by default.

    Raises:
        ValueError: The shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"ground truth has shape {truth.shape}, prediction {prediction.shape}")
    counts = count(truth, prediction, counted)
    if counted is not None:
        truth, prediction = truth & counted, prediction & counted
    if counts.both_empty:
        return Score(counts, _UNDEFINED, _UNDEFINED)
    if not truth.any() or not prediction.any():
        return Score(counts, _diagonal(truth.shape, spacing), 0.0)
    return Score(counts, *_surface_scores(truth, prediction, spacing, tolerance))


def total(counts: Iterable[Counts]) -> Counts:
    """Return the counts of all pixels together."""
    return sum(counts, Counts(0, 0, 0, 0))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else _UNDEFINED


def _diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    return math.hypot(*(pixels * size for pixels, size in zip(shape, spacing, strict=True)))


def _surface_scores(truth: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float) -> tuple[float, float]:
    """HD95 and NSD of two masks that are not empty."""
    # slow to import
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    masks = torch.from_numpy(prediction), torch.from_numpy(truth)
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself
        warnings.simplefilter("ignore", FutureWarning)
        edges, distances, areas = get_edge_surface_distance(
            *masks, spacing=tuple(spacing), use_subvoxels=True, symmetric=True
        )
    distance = [np.asarray(d, dtype=np.float64) for d in distances]
    area = [np.asarray(a[edge], dtype=np.float64) for a, edge in zip(areas, edges, strict=True)]
    hd95 = max(_percentile_by_area(d, a, 0.95) for d, a in zip(distance, area, strict=True))
    near = sum(float(a[d <= tolerance].sum()) for d, a in zip(distance, area, strict=True))
    return hd95, near / float(sum(a.sum() for a in area))


def _percentile_by_area(distance: NDArray[np.float64], area: NDArray[np.float64], fraction: float) -> float:
    """The smallest distance that this fraction of the surface does not exceed."""
    order = np.argsort(distance, kind="stable")
    covered = np.cumsum(area[order]) / area.sum()
    return float(distance[order][min(int(np.searchsorted(covered, fraction)), len(order) - 1)])

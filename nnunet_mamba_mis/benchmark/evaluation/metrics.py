"""Segmentation metrics for a class of one case, and for the pixels of all cases together.

Surface metrics use MONAI's subvoxel surfaces, which follow DeepMind's surface-distance package: the boundary runs
between pixels, and each boundary element is weighted by its length (2D) or area (3D).
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
        """Whether the class is in neither the ground truth nor the prediction."""
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
        """Mean of the IoU of the class and that of the background, called mIoU in papers on skin lesions and polyps."""
        return (self.iou + _ratio(self.tn, self.tn + self.fp + self.fn)) / 2

    @property
    def precision(self) -> float:
        """TP / (TP + FP); 0 if nothing was predicted but there was something to find."""
        return 0.0 if self.tp + self.fp == 0 < self.fn else _ratio(self.tp, self.tp + self.fp)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN); NaN if there was nothing to find."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP); NaN if the class covers the whole image."""
        return _ratio(self.tn, self.tn + self.fp)


@dataclass(frozen=True)
class Score:
    """Counts and distances of one class in one case; all metrics are NaN if the class is in neither mask.

    Args:
        counts: Numbers of pixels.
        hd95: 95th-percentile Hausdorff distance, in units of the spacing; the image's diagonal if one mask is empty.
        nsd: Normalised surface Dice at the tolerance; 0 if one mask is empty.
        reliability: Reliability of the probabilities; None if they were not saved.
    """

    counts: Counts
    hd95: float
    nsd: float
    reliability: Reliability | None = None

    def value(self, metric: str) -> float:
        """Return a metric of METRICS; NaN if it is undefined."""
        if self.counts.both_empty:
            return _UNDEFINED
        return getattr(self if metric in ("hd95", "nsd") else self.counts, metric)


def count(truth: Mask, prediction: Mask, counted: Mask | None = None) -> Counts:
    """Count pixels.

    Args:
        truth: Mask, (H, W) or (D, H, W).
        prediction: Mask of the same shape.
        counted: Pixels to include; all by default.
    """
    counted = np.ones_like(truth) if counted is None else counted
    pairs = ((truth, prediction), (~truth, prediction), (truth, ~prediction), (~truth, ~prediction))
    return Counts(*(int(np.count_nonzero(in_truth & predicted & counted)) for in_truth, predicted in pairs))


def score(
    truth: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float, counted: Mask | None = None
) -> Score:
    """Score one class of one case.

    Args:
        truth: Mask, (H, W) or (D, H, W).
        prediction: Mask of the same shape.
        spacing: Spacing of each axis.
        tolerance: Tolerance of the normalised surface Dice, in units of the spacing.
        counted: Pixels to include (those without nnU-Net's ignore label); all by default.

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
    """Return the sum of counts."""
    return sum(counts, Counts(0, 0, 0, 0))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else _UNDEFINED


def _diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    return math.hypot(*(pixels * size for pixels, size in zip(shape, spacing, strict=True)))


def _surface_scores(truth: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float) -> tuple[float, float]:
    """Return the HD95 and NSD of two masks, neither of which is empty."""
    # imported here, as these are slow to import
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    masks = torch.from_numpy(prediction), torch.from_numpy(truth)
    with warnings.catch_warnings():
        # MONAI 1.6 warns about an argument that it passes itself
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
    """Return the smallest distance within which at least this fraction of the surface lies."""
    order = np.argsort(distance, kind="stable")
    covered = np.cumsum(area[order]) / area.sum()
    return float(distance[order][min(int(np.searchsorted(covered, fraction)), len(order) - 1)])

"""Compare predicted masks with the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_mamba_mis.benchmark.evaluation.metrics import Counts, count
from nnunet_mamba_mis.utils.errors import UserError


@dataclass(frozen=True)
class Score:
    """How well one image was segmented.

    Args:
        identifier: nnU-Net's case identifier.
        counts: pixels of the polyp or lesion.
    """

    identifier: str
    counts: Counts

    @property
    def defined(self) -> bool:
        """Whether there is a Dice: not where both masks are empty, which is right but would count as a free 1."""
        return not self.counts.both_empty

    @property
    def dice(self) -> float:
        """NaN if both masks are empty."""
        return self.counts.dice

    @property
    def iou(self) -> float:
        """NaN if both masks are empty."""
        return self.counts.iou


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (of the sample; NaN for one image) over the images that have a Dice."""

    dice_mean: float
    dice_sd: float
    iou_mean: float
    iou_sd: float
    images: int
    both_empty: int


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return where a label map (H, W) is not background."""
    with Image.open(path) as image:
        return np.asarray(image) > 0


def score_masks(identifier: str, truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> Score:
    """Score a mask (H, W).

    Raises:
        ValueError: the masks differ in shape.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"{identifier}: ground truth has shape {truth.shape}, prediction {prediction.shape}")
    return Score(identifier, count(truth, prediction))


def score_folders(labels: Path, predictions: Path) -> list[Score]:
    """Score all masks of a folder, worst first; those without Dice last.

    Raises:
        UserError: a prediction is missing.
    """
    scores = []
    for label in sorted(labels.glob("*.png")):
        prediction = predictions / label.name
        if not prediction.is_file():
            raise UserError(f"{prediction} is missing: nnUNetv2_predict left out {label.stem}")
        scores.append(score_masks(label.stem, read_mask(label), read_mask(prediction)))
    return sorted(scores, key=lambda score: (not score.defined, score.dice if score.defined else 0, score.identifier))


def summarize(scores: Sequence[Score]) -> Summary:
    """Return mean and standard deviation of Dice and IoU."""
    defined = [score for score in scores if score.defined]
    dice = _mean_and_sd([score.dice for score in defined])
    iou = _mean_and_sd([score.iou for score in defined])
    return Summary(*dice, *iou, images=len(scores), both_empty=len(scores) - len(defined))


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else float("nan")
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

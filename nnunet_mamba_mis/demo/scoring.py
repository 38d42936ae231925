"""Compare predicted masks with the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_mamba_mis.benchmark.evaluation.metrics import Counts, count
from nnunet_mamba_mis.utils.errors import UserError

# case identifier → pixel counts of the polyp or lesion, worst first; if both masks are empty, the prediction is correct
# but has no Dice, as counting it as 1 would inflate the mean
Scores = Mapping[str, Counts]


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (NaN for one image) over the images that have a Dice."""

    dice_mean: float
    dice_sd: float
    iou_mean: float
    iou_sd: float
    images: int
    both_empty: int


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return the foreground of a label map (H, W)."""
    with Image.open(path) as image:
        return np.asarray(image) > 0


def score_folders(labels: Path, predictions: Path) -> Scores:
    """Score all masks of a folder, and return the scores worst first, with masks that have no Dice last.

    Raises:
        UserError: A prediction is missing or has another shape.
    """
    scores = {}
    for label in sorted(labels.glob("*.png")):
        prediction = predictions / label.name
        if not prediction.is_file():
            raise UserError(f"{prediction} is missing: nnUNetv2_predict did not predict {label.stem}")
        truth, predicted = read_mask(label), read_mask(prediction)
        if truth.shape != predicted.shape:
            raise UserError(f"{prediction} has shape {predicted.shape}, but its ground truth has {truth.shape}")
        scores[label.stem] = count(truth, predicted)
    # the sort is stable: equal scores stay in alphabetical order
    return dict(sorted(scores.items(), key=lambda item: (item[1].both_empty, np.nan_to_num(item[1].dice))))


def summarize(scores: Scores) -> Summary:
    """Return the mean and standard deviation of Dice and IoU."""
    defined = [counts for counts in scores.values() if not counts.both_empty]
    dice = _mean_and_sd([counts.dice for counts in defined])
    iou = _mean_and_sd([counts.iou for counts in defined])
    return Summary(*dice, *iou, images=len(scores), both_empty=len(scores) - len(defined))


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else float("nan")
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

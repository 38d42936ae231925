"""Compare ways to turn saved probabilities of one class into a mask, by the mean Dice over cases.

    python scripts/compare_decoding.py VALIDATION LABELS

VALIDATION holds CASE.npz, as saved by `nnUNetv2_train --npz` or `mamba_mis benchmark run --save-probabilities`. LABELS
holds the ground truth, CASE.png. Cases in which class 1 is in neither mask have no score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THRESHOLDS = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)


def largest_expected_dice(probability: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return the k most probable pixels, for the k with the largest approximate expected Dice, 2 Σₖp / (k + Σp).

    Source: Dai and Li 2023, "RankSEG". Pixels as probable as the last of the k are included.
    """
    ranked = np.sort(probability, axis=None)[::-1].astype(np.float64)
    sums = np.cumsum(ranked)
    expected = 2 * sums / (np.arange(1, sums.size + 1) + sums[-1])
    return probability >= ranked[expected.argmax()]


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the Dice score of two masks (H, W), nan if both are empty."""
    pixels = mask.sum() + truth.sum()
    return float(2 * (mask & truth).sum() / pixels) if pixels else float("nan")


def main() -> None:
    """Print the mean Dice of each decoding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("validation", type=Path, metavar="VALIDATION")
    parser.add_argument("labels", type=Path, metavar="LABELS")
    arguments = parser.parse_args()
    scores = []
    for file in sorted(arguments.validation.glob("*.npz")):
        label = arguments.labels / f"{file.stem}.png"
        if not label.exists():
            parser.error(f"{label} does not exist: LABELS must hold the ground truth of every case in VALIDATION")
        with np.load(file, allow_pickle=False) as saved:
            probability = saved["probabilities"][1, 0]
        truth = np.asarray(Image.open(label)) == 1
        masks = [*(probability > threshold for threshold in THRESHOLDS), largest_expected_dice(probability)]
        scores.append([dice(mask, truth) for mask in masks])
    if not scores:
        parser.error(f"{arguments.validation} has no .npz: nnU-Net saves probabilities with --npz")
    for name, mean in zip([*map(str, THRESHOLDS), "largest expected Dice"], np.nanmean(scores, axis=0), strict=True):
        print(f"{name:>21}  {mean:.4f}")


if __name__ == "__main__":
    main()

"""Which cases are shown, by a rule that is fixed before anybody looks, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_mamba_mis.benchmark.evaluation.folds import Fold, Truth
from nnunet_mamba_mis.benchmark.evaluation.scores import Scores, mean_of_defined
from nnunet_mamba_mis.benchmark.label_maps import Labels, read_label_map
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.reporting.figures import Panel

_QUANTILES = {"worst": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "best": 1.0}


def choose(scores: Scores, names: Mapping[Model, str], row: str) -> list[tuple[str, str]]:
    """Return cases and why each was chosen: quantiles of the baseline's Dice, and the others' largest gain and loss."""
    dice = {
        model: {case: value for case, value in scores.values(model, "dice", row).items() if not np.isnan(value)}
        for model in names
    }
    baseline, *others = names
    ordered = sorted(dice[baseline], key=lambda case: (dice[baseline][case], case))
    if not ordered:
        return []
    chosen = [
        (f"{name} Dice of {names[baseline]}", ordered[math.floor(quantile * (len(ordered) - 1))])
        for name, quantile in _QUANTILES.items()
    ]
    for model in others:
        gain = {case: value - dice[baseline][case] for case, value in dice[model].items() if case in dice[baseline]}
        if gain:
            chosen.append((f"largest gain of {names[model]}", max(sorted(gain), key=lambda case: gain[case])))
            chosen.append((f"largest loss of {names[model]}", min(sorted(gain), key=lambda case: gain[case])))
    return chosen


def panels(
    chosen: Sequence[tuple[str, str]], truth: Truth, folds: Sequence[Fold], scores: Scores, models: Sequence[Model]
) -> list[Panel]:
    """Read image, ground truth and predictions of the cases; of several seeds the first."""
    labels = truth.classes
    rows = []
    for why, case in chosen:
        run = next(run for run in scores.runs if run.case == case)
        files = [
            fold.predictions[case]
            for model in models
            for fold in folds
            if (fold.model, fold.seed, fold.number) == (model, run.seed, run.fold)
        ]
        reference, *predictions = (
            read_label_map(file, labels)[0] for file in (truth.labels / f"{case}{labels.file_ending}", *files)
        )
        section = _section(reference)
        classes = [scores.by_model[model][run].values() for model in models]
        dice = [mean_of_defined(score.value("dice") for score in by_class) for by_class in classes]
        masks = [list(labels.masks(label_map[section]).values()) for label_map in (reference, *predictions)]
        image = _read_image(truth.images, case, labels, reference.shape)
        rows.append(Panel(why, case, image[section], masks[0], masks[1:], dice))
    return rows


def _section(label_map: NDArray) -> tuple[int, ...]:
    """Index of the slice with most foreground; nothing for an image."""
    if label_map.ndim == 2:
        return ()
    return (int((label_map > 0).sum(axis=(1, 2)).argmax()),)


def _read_image(folder: Path, case: str, labels: Labels, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the image, RGB or its first channel, with 8 bits; grey if it is not there any more."""
    files = sorted(str(file) for file in folder.glob(f"{case}_????{labels.file_ending}"))
    if not files:
        return np.full(shape, 128, dtype=np.uint8)
    channels = labels.reader().read_images(files)[0]
    if len(files) == 1 and len(channels) in (3, 4):
        return np.moveaxis(channels[:3, 0], 0, -1).clip(0, 255).astype(np.uint8)
    first = channels[0][0] if len(shape) == 2 else channels[0]
    low, high = np.percentile(first, [0.5, 99.5])
    return (255 * ((first - low) / max(high - low, 1e-8)).clip(0, 1)).astype(np.uint8)

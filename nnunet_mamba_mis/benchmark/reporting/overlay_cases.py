"""Select the cases to show, by a fixed rule that is independent of their appearance, and read them."""

from __future__ import annotations

import itertools
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
from nnunet_mamba_mis.utils.overlays import for_display, read_natural_image

_QUANTILES = {"worst": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "best": 1.0}


def choose(scores: Scores, names: Mapping[Model, str], row: str) -> list[tuple[str, str]]:
    """Return (reason, case) pairs: quantiles of the baseline's Dice, and each other model's largest gain and loss."""
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
) -> tuple[list[Panel], list[str]]:
    """Read the image, ground truth and predictions of each case, for the first seed if there are several.

    Returns:
        The panels, with a grey image if a case's image cannot be used; and reasons for grey images and missing panels.
    """
    labels = truth.classes
    rows: list[Panel] = []
    problems: dict[str, str] = {}
    for why, case in chosen:
        run = next(run for run in scores.runs if run.case == case)
        files = [
            fold.predictions[case]
            for model in models
            for fold in folds
            if (fold.model, fold.seed, fold.number) == (model, run.seed, run.fold)
        ]
        try:
            reference, *predictions = (
                read_label_map(file, labels)[0] for file in (truth.labels / f"{case}{labels.file_ending}", *files)
            )
        except ValueError as error:
            problems[case] = f"case {case} is not shown: {error}"
            continue
        section = _section(reference)
        classes = [scores.by_model[model][run].values() for model in models]
        dice = [mean_of_defined(score.value("dice") for score in by_class) for by_class in classes]
        masks = [list(labels.masks(label_map[section]).values()) for label_map in (reference, *predictions)]
        try:
            image = _read_image(truth.images, case, labels, reference.shape)
        except ValueError as error:
            problems[case] = f"case {case} is shown on grey: {error}"
            image = np.full(reference.shape, 128, dtype=np.uint8)
        rows.append(Panel(why, case, image[section], masks[0], masks[1:], dice))
    return rows, list(problems.values())


def _section(label_map: NDArray) -> tuple[int, ...]:
    """Return the index of the slice with most foreground; an empty index for a 2D image."""
    if label_map.ndim == 2:
        return ()
    return (int((label_map > 0).sum(axis=(1, 2)).argmax()),)


def _read_image(folder: Path, case: str, labels: Labels, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the image for display: RGB, or its first channel.

    Raises:
        ValueError: The image is missing or unreadable, or its shape differs from the ground truth.
    """
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    channels = (folder / f"{case}_{channel:04d}{labels.file_ending}" for channel in itertools.count())
    files = list(itertools.takewhile(Path.is_file, channels))
    if not files:
        raise ValueError(f"{folder / f'{case}_0000{labels.file_ending}'} does not exist")
    try:
        if issubclass(labels.reader, NaturalImage2DIO):
            image = read_natural_image(files[0])
        else:
            volume = labels.reader().read_images(list(map(str, files)))[0][0]
            image = volume[0] if len(shape) == 2 else volume
        image = for_display(image)
    except Exception as error:  # each of nnU-Net's image libraries has its own exceptions
        raise ValueError(f"{files[0]} cannot be read ({type(error).__name__})") from None
    if image.shape[: len(shape)] != shape:
        raise ValueError(f"{files[0]} has shape {image.shape[: len(shape)]}, but its ground truth has {shape}")
    return image

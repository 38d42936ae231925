"""Draw the demo's pictures: outlines on the unseen images, and the training curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_mamba_mis.demo.scoring import Scores, read_mask
from nnunet_mamba_mis.nnunet.logs import Epoch
from nnunet_mamba_mis.utils.figures import for_figure, plain_figures, save_figure
from nnunet_mamba_mis.utils.overlays import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    for_display,
    legend_handles,
    outline,
    read_natural_image,
    tile,
)

_TILE_INCHES = 2.3
_MOST_COLUMNS = 8


@plain_figures()
def draw_overlays(scores: Scores, images: Path, labels: Path, predictions: Path, file: Path) -> list[str]:
    """Draw every image with the outlines of ground truth and prediction, in the order of the scores.

    Args:
        scores: Scores of the images to draw.
        images: Folder with <identifier>_0000.png.
        labels: Folder with the ground truth, <identifier>.png.
        predictions: Folder with the predictions, <identifier>.png.
        file: PNG to write.

    Returns:
        Descriptions of images that cannot be read and are shown as grey.
    """
    problems = []
    columns = min(_MOST_COLUMNS, max(3, round((1.3 * len(scores)) ** 0.5)))
    rows = max(1, -(-len(scores) // columns))
    # in inches: a strip for the heading above the tiles, and the tiles
    heading, height = 0.75, rows * _TILE_INCHES
    # a Figure without pyplot draws with Agg, which needs no display
    figure = Figure(figsize=(columns * _TILE_INCHES, height + heading), dpi=130, facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, (identifier, counts) in zip(axes, scores.items(), strict=False):
        masks = [read_mask(folder / f"{identifier}.png") for folder in (labels, predictions)]
        try:
            image = for_display(read_natural_image(images / f"{identifier}_0000.png"))
        except Exception as error:  # image libraries raise exceptions of many kinds
            problems.append(f"image {identifier} is shown as grey: it cannot be read ({type(error).__name__})")
            image = np.full(masks[0].shape, 128, dtype=np.uint8)
        picture, scale = tile(image)
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
        # images differ in height: align their titles
        ax.set_anchor("N")
        for mask, colour in zip(masks, (TRUTH_COLOUR, PREDICTION_COLOUR), strict=True):
            outline(ax, mask, scale, colour)
        dice = "no polyp, none found" if counts.both_empty else f"Dice {counts.dice:.3f}"
        ax.set_title(dice, fontsize=10, pad=3)
        ax.text(
            0.5,
            -0.02,
            for_figure(identifier, 36, most_lines=1),
            transform=ax.transAxes,
            ha="center",
            va="top",
            fontsize=6,
            color="0.45",
        )
    top = 1 - heading / (height + heading)
    figure.subplots_adjust(0.01, 0.12 / (height + heading), 0.99, top, wspace=0.05, hspace=0.16)
    figure.suptitle(
        "Unseen images, worst to best", x=0.01, y=1 - 0.1 / (height + heading), ha="left", va="top", fontsize=13
    )
    figure.legend(handles=legend_handles(), loc="upper right", ncols=2, frameon=False, fontsize=10)
    save_figure(figure, file)
    return problems


@plain_figures()
def draw_training_curve(epochs: Sequence[Epoch], file: Path) -> None:
    """Draw losses and pseudo Dice of each epoch."""
    number = np.arange(1, len(epochs) + 1)
    figure = Figure(figsize=(9, 3.6), dpi=130, facecolor="white", layout="constrained")
    losses, dice = figure.subplots(1, 2)
    losses.plot(number, [epoch.train_loss for epoch in epochs], "o-", color="0.35", label="training")
    losses.plot(number, [epoch.val_loss for epoch in epochs], "s-", color="tab:orange", label="validation")
    losses.set_title("Loss (Dice + cross entropy, lower is better)", fontsize=10)
    losses.legend(frameon=False)
    dice.plot(number, [epoch.pseudo_dice for epoch in epochs], "s-", color="tab:orange")
    dice.set_title("Pseudo Dice (validation patches)", fontsize=10)
    dice.set_ylim(0, 1)
    for ax in (losses, dice):
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(figure, file)

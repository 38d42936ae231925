"""Draw the figure in README.md: images side by side, with the outlines of ground truth and prediction.

    python scripts/outline_figure.py -i imagesTs -g labelsTs -p predictions -o outlines.png

The script takes the first images by name, so nobody picks the best ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from nnunet_mamba_mis.utils.overlays import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    for_display,
    legend_handles,
    outline,
    read_natural_image,
)

INCHES = 1.75


def draw(images: list[Path], truth: Path, predictions: Path, file: Path) -> list[float]:
    """Write the figure and return the Dice score of each image.

    Args:
        images: Images named CASE_0000.png.
        truth: Folder with the ground truth, CASE.png.
        predictions: Folder with the predictions, CASE.png.
        file: The PNG to write.
    """
    figure = Figure(figsize=(len(images) * INCHES, INCHES + 0.42), dpi=110, facecolor="white")
    scores = []
    for ax, path in zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True):
        name = path.name.replace("_0000.png", ".png")
        masks = [np.asarray(Image.open(folder / name)) == 1 for folder in (truth, predictions)]
        scores.append(2 * (masks[0] & masks[1]).sum() / max(1, sum(mask.sum() for mask in masks)))
        ax.imshow(for_display(read_natural_image(path)), cmap="gray", interpolation="bilinear")
        for mask, colour in zip(masks, (TRUTH_COLOUR, PREDICTION_COLOUR), strict=True):
            outline(ax, mask, 1.0, colour)
        ax.set_title(f"Dice {scores[-1]:.2f}", fontsize=8, pad=2)
        ax.set_axis_off()
    figure.subplots_adjust(0.003, 0.11, 0.997, 0.92, wspace=0.03)
    figure.legend(handles=legend_handles(), loc="lower center", ncols=2, fontsize=8, frameon=False, borderpad=0)
    figure.savefig(file)
    # a palette of 256 colours reduces the file to a third of its size
    Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
    return scores


def main() -> None:
    """Draw the first images of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--images", type=Path, required=True, help="folder with CASE_0000.png")
    parser.add_argument("-g", "--ground-truth", type=Path, required=True, help="folder with CASE.png")
    parser.add_argument("-p", "--predictions", type=Path, required=True, help="folder with CASE.png")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("-n", "--number", type=int, default=6, help="number of images; default: %(default)s")
    arguments = parser.parse_args()
    images = sorted(arguments.images.glob("*_0000.png"))[: arguments.number]
    if not images:
        parser.error(f"{arguments.images} has no CASE_0000.png")
    scores = draw(images, arguments.ground_truth, arguments.predictions, arguments.output)
    for image, score in zip(images, scores, strict=True):
        print(f"{image.name.removesuffix('_0000.png')}  Dice {score:.3f}")


if __name__ == "__main__":
    main()

"""Outlines of masks on images."""

from __future__ import annotations

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

# apart from each other, and from red and orange mucosa, for every kind of colour vision
TRUTH_COLOUR = "#f7f7f7"
PREDICTION_COLOUR = "#00a8ff"

# pixels of an image in a grid, along its longer side
_TILE = 420


def tile(image: Image.Image) -> tuple[NDArray[np.uint8], float]:
    """Return the image no larger than a tile, and by how much it was scaled."""
    scale = min(1.0, _TILE / max(image.size))
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return np.asarray(image), scale


def outline(ax: Axes, mask: NDArray[np.bool_], scale: float, colour: str) -> None:
    """Draw the outline of a mask (H, W) on an image that was scaled."""
    if not mask.any():
        return
    # a rim of background closes the outline where the mask touches the border
    rows, columns = ((np.arange(-1, size + 1) + 0.5) * scale - 0.5 for size in mask.shape)
    contour = ax.contour(columns, rows, np.pad(mask, 1), levels=[0.5], colors=[colour], linewidths=1.3)
    contour.set_path_effects(_dark_rim(2.6))
    ax.set_xlim(columns[1] - scale / 2, columns[-2] + scale / 2)
    ax.set_ylim(rows[-2] + scale / 2, rows[1] - scale / 2)


def legend_handles() -> list[Line2D]:
    """Return the lines of a legend: ground truth and prediction."""
    return [
        Line2D([], [], color=colour, linewidth=2.5, label=label, path_effects=_dark_rim(4.5))
        for colour, label in ((TRUTH_COLOUR, "ground truth"), (PREDICTION_COLOUR, "prediction"))
    ]


def _dark_rim(width: float) -> list[patheffects.AbstractPathEffect]:
    return [patheffects.Stroke(linewidth=width, foreground="black", alpha=0.65), patheffects.Normal()]

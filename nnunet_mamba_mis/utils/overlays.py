"""Turn images into pictures, and draw outlines of masks; only figures need matplotlib, which is slow to import."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_mamba_mis.utils.text import is_utf8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import AbstractPathEffect

# distinct from each other, and from red and orange mucosa, for every kind of colour vision
TRUTH_COLOUR = "#f7f7f7"
PREDICTION_COLOUR = "#00a8ff"
# for labels from 1 on; the first is PREDICTION_COLOUR
_LABEL_COLOURS = np.array(
    [(0, 168, 255), (240, 228, 66), (0, 200, 120), (255, 120, 220), (255, 255, 255), (150, 110, 255)], dtype=np.uint8
)

# pixels of an image in a grid, along its longer side
_TILE = 420


def read_natural_image(path: Path) -> NDArray[Any]:
    """Read a PNG, BMP or TIFF at its own bit depth.

    Returns:
        (H, W, 3) for 3 or 4 channels, otherwise the first channel (H, W).

    Raises:
        Exception: The file cannot be read; the type is the library's.
    """
    # slow to import
    import SimpleITK as sitk
    from skimage import io

    # nnU-Net reads with scikit-image, which keeps only the upper 8 bits of a 16-bit RGB PNG
    if path.suffix == ".png" and is_utf8(str(path)):
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="PNGImageIO"))
    else:
        image = io.imread(path)
    if image.ndim == 2:
        return image
    # drop alpha
    return image[..., :3] if image.shape[-1] in (3, 4) else image[..., 0]


def for_display(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an 8-bit image unchanged, and any other scaled from black to white between two of its percentiles.

    Args:
        image: (…, H, W), or (…, H, W, 3) for colours, which are scaled alike.
    """
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 0.0)
    if low == high and finite.size:
        # a few bright pixels on a constant background
        low, high = finite.min(), finite.max()
    scaled = (np.nan_to_num(values, nan=low) - low) / (high - low if high > low else 1.0)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8)


def with_outlines(picture: NDArray[np.uint8], labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a picture with the outline of each label, in a colour of its own.

    Args:
        picture: (H, W), or (H, W, 3) for colours.
        labels: (H, W), where 0 is background.
    """
    drawn = np.array(picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1))
    inner = _border(labels)
    # widen lines, so that they are visible even in large pictures
    for _ in range(max(labels.shape) // 400):
        inner = _widened(inner, labels)
    rim = (_widened(inner, np.maximum(inner, 1)) > 0) & (inner == 0)
    drawn[rim] //= 2
    shown = inner > 0
    drawn[shown] = _LABEL_COLOURS[(inner[shown] - 1) % len(_LABEL_COLOURS)]
    return drawn


def _border(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels at pixels next to another label or to the picture's edge; 0 elsewhere."""
    # -1 is not a label
    around = np.pad(labels.astype(np.int32), 1, constant_values=-1)
    own = around[1:-1, 1:-1]
    differs = [own != other for other in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])]
    return np.where(np.logical_or.reduce(differs), own, 0)


def _widened(lines: NDArray[Any], within: NDArray[Any]) -> NDArray[Any]:
    """Return lines widened by a pixel on each side, but only inside labels."""
    around = np.pad(lines, 1)
    parts = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    wider = functools.reduce(np.maximum, parts)
    return np.where((lines == 0) & (within > 0), wider, lines)


def tile(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """Scale an image down to a tile if it is larger; return it with the scale."""
    height, width = image.shape[:2]
    scale = min(1.0, _TILE / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return image, scale


def outline(ax: Axes, mask: NDArray[np.bool_], scale: float, colour: str) -> None:
    """Draw the outline of a mask (H, W) on an image that is scaled by `scale`."""
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
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linewidth=2.5, label=label, path_effects=_dark_rim(4.5))
        for colour, label in ((TRUTH_COLOUR, "ground truth"), (PREDICTION_COLOUR, "prediction"))
    ]


def _dark_rim(width: float) -> list[AbstractPathEffect]:
    from matplotlib import patheffects

    return [patheffects.Stroke(linewidth=width, foreground="black", alpha=0.65), patheffects.Normal()]

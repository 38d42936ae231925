"""Images as pictures, and outlines of masks on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from nnunet_mamba_mis.utils.text import is_utf8

# apart from each other, and from red and orange mucosa, for every kind of colour vision
TRUTH_COLOUR = "#f7f7f7"
PREDICTION_COLOUR = "#00a8ff"

# pixels of an image in a grid, along its longer side
_TILE = 420


def read_natural_image(path: Path) -> NDArray[Any]:
    """Read a PNG, BMP or TIFF in its own depth.

    Returns:
        (H, W), or (H, W, 3) for colours; the first channel where there are as many as neither grey nor colours have.

    Raises:
        Exception: Of the library's own kinds: the file cannot be read.
    """
    # slow to import
    import SimpleITK as sitk
    from skimage import io

    # nnU-Net reads with scikit-image, which has the upper 8 bits of an RGB PNG of 16 alone
    if path.suffix == ".png" and is_utf8(str(path)):
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="PNGImageIO"))
    else:
        image = io.imread(path)
    if image.ndim == 2:
        return image
    # without alpha
    return image[..., :3] if image.shape[-1] in (3, 4) else image[..., 0]


def for_display(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image with 8 bits: 8 bits as they are, all else from black to white between two of its own percentiles.

    Args:
        image: (…, H, W), or (…, H, W, 3) for colours, which are scaled alike.
    """
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 0.0)
    if low == high and finite.size:
        # a few bright pixels on nothing
        low, high = finite.min(), finite.max()
    scaled = (np.nan_to_num(values, nan=low) - low) / (high - low if high > low else 1.0)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8)


def tile(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """Return an image no larger than a tile, and by how much it was scaled."""
    height, width = image.shape[:2]
    scale = min(1.0, _TILE / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return image, scale


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

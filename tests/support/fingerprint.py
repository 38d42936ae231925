"""Write the fingerprint that nnU-Net extracts from a dataset before planning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def write_fingerprint(
    folder: Path, shapes: Sequence[Sequence[int]], channels: int, spacing: Sequence[float] = (999, 1, 1)
) -> None:
    """Write dataset_fingerprint.json; nnU-Net would sample ten million intensities per channel even for tiny datasets.

    Args:
        folder: Folder of the dataset in nnUNet_preprocessed.
        shapes: Shape (slices, H, W) of each case.
        channels: Number of image channels.
        spacing: Spacing of all cases.
    """
    intensities = {"mean": 100, "median": 100, "std": 50, "min": 0, "max": 255}
    intensities |= {"percentile_00_5": 0, "percentile_99_5": 255}
    fingerprint = {
        "spacings": [list(spacing)] * len(shapes),
        "shapes_after_crop": [list(shape) for shape in shapes],
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))

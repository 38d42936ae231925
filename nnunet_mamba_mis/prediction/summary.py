"""Write summary.csv, with areas, component counts and confidence for each image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunet_mamba_mis.nnunet.dataset import Dataset, Label
from nnunet_mamba_mis.prediction.preprocessing import Restored
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import for_spreadsheet

SUMMARY_FILE = "summary.csv"


class Summary:
    """A table with one row per image; each row is written to disk as soon as it is added.

    Args:
        folder: Folder of the table, which `begin` writes.
        dataset: Dataset with the classes or regions.
        keep: Function that returns whether to keep an image's existing row; None discards all rows.

    Raises:
        UserError: The existing table has other classes, or cannot be read.
    """

    def __init__(self, folder: Path, dataset: Dataset, keep: Callable[[str], bool] | None = None) -> None:
        self._path = folder / SUMMARY_FILE
        self._classes: Mapping[str, Label] = dataset.foreground
        self._header = ["image"]
        for name in self._classes:
            self._header += [for_spreadsheet(f"{name}: area in pixels"), for_spreadsheet(f"{name}: components")]
        self._header += ["mean confidence", "seconds"]
        self._rows = {}
        if keep and self._path.exists():
            rows = {row[0].removeprefix("'"): row for row in self._earlier_rows()}
            self._rows = {image: row for image, row in rows.items() if keep(image)}

    def __contains__(self, image: str) -> bool:
        return image in self._rows

    def begin(self) -> None:
        """Replace the table on disk by one with only the kept rows.

        Raises:
            OSError: The table cannot be written.
        """
        with atomic_write(self._path) as file:
            file.write(_lines([self._header, *self._rows.values()]))

    def add(self, image: str, prediction: Restored, seconds: float) -> None:
        """Append an image's row.

        Raises:
            OSError: The row cannot be written; the table is unchanged.
        """
        row = [for_spreadsheet(image)]
        for label in self._classes.values():
            mask = np.isin(prediction.labels, label)
            # pixels that touch at corners are connected
            components = ndimage.label(mask, np.ones((3,) * mask.ndim))[1] if mask.any() else 0
            row += [str(int(mask.sum())), str(components)]
        row += [f"{_mean_confidence(prediction):.4f}", f"{seconds:.3f}"]
        with self._path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                file.write(_lines([row]))
                file.flush()
            except OSError:
                file.truncate(end)
                raise

    def _earlier_rows(self) -> list[list[str]]:
        try:
            text = self._path.read_text(encoding="utf-8")
            # drop an incomplete last line, which a killed run leaves
            header, *rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{self._path} cannot be read ({error}): remove it, or leave --resume out") from None
        if header != self._header:
            raise UserError(f"{self._path} belongs to a model with other classes: choose another folder with -o")
        return [row for row in rows if len(row) == len(header)]


def _mean_confidence(prediction: Restored) -> float:
    """Return the mean probability of the predicted class or, for regions, of the predicted side: inside or outside."""
    chances = prediction.probabilities
    if chances is None:
        return float("nan")
    if prediction.of_regions:
        return float(np.maximum(chances, 1 - chances).mean())
    return float(chances.max(axis=0).mean())


def _lines(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")

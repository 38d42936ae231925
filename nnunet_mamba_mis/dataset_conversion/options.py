"""Options of a conversion."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.utils.errors import UserError


@dataclass(frozen=True)
class Options:
    """How to convert.

    Args:
        resize: Side in pixels of the square that all images are resized to; None keeps their sizes.
        keep_aspect: Pad to the square instead of stretching.
        official: Make one fold, from the challenge's own training and validation sets.
        skip_bad: Leave out cases and files with problems instead of failing.
        dry_run: Stop after checking.
        overwrite: Replace a dataset with the same id and name.
        hold_out: Number of training cases, spread evenly over their sorted identifiers, to move to a test set.
    """

    resize: int | None = None
    keep_aspect: bool = False
    official: bool = False
    skip_bad: bool = False
    dry_run: bool = False
    overwrite: bool = False
    hold_out: int = 0

    def check(self, dataset: Dataset) -> None:
        """Check all that can be checked before reading the source.

        Raises:
            UserError: A value is unusable, or options conflict with the dataset or with each other.
        """
        if self.resize is not None and not 8 <= self.resize <= 8192:
            raise UserError(f"--resize {self.resize}: the side of an image must be between 8 and 8192 pixels")
        if self.keep_aspect and self.resize is None:
            raise UserError("--keep-aspect needs --resize N")
        if self.official and not dataset.official_validation:
            raise UserError(f"--official-split: {dataset.name} has no official validation set; omit the option")
        if self.hold_out < 0:
            raise UserError(f"--hold-out {self.hold_out}: the number of cases must not be negative")
        if self.hold_out and self.official:
            raise UserError("--hold-out and --official-split exclude each other: give only one of them")

"""How a user wants a dataset converted."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.utils.errors import UserError


@dataclass(frozen=True)
class Options:
    """How to convert.

    Args:
        resize: Side of a square to bring all to, in pixels; None keeps sizes.
        keep_aspect: Pad to the square rather than stretch.
        official: One fold of the challenge's own training and validation sets.
        skip_bad: Leave out what has a problem rather than fail.
        dry_run: Stop after checking.
        overwrite: Replace a dataset of the same id and name.
        hold_out: Number of training cases, spread evenly over their sorted identifiers, that become a test set.
    """

    resize: int | None = None
    keep_aspect: bool = False
    official: bool = False
    skip_bad: bool = False
    dry_run: bool = False
    overwrite: bool = False
    hold_out: int = 0

    def check(self, dataset: Dataset) -> None:
        """Check what can be checked before the source is read.

        Raises:
            UserError: A value is unusable, or the options do not fit the dataset or each other.
        """
        if self.resize is not None and not 8 <= self.resize <= 8192:
            raise UserError(f"--resize {self.resize}: the side of an image must lie between 8 and 8192 pixels")
        if self.keep_aspect and self.resize is None:
            raise UserError("--keep-aspect says how to resize: give --resize N with it")
        if self.official and not dataset.official_validation:
            raise UserError(f"--official-split: {dataset.name} has no validation set of its own; leave the option out")
        if self.hold_out < 0:
            raise UserError(f"--hold-out {self.hold_out}: the number of cases must not be negative")
        if self.hold_out and self.official:
            raise UserError("--hold-out would divide the official sets of --official-split: give one of the two")

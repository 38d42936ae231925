"""Compare the folds in splits_final.json with the preprocessed cases."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nnunet_mamba_mis.nnunet.dataset import Splits, first_fold
from nnunet_mamba_mis.nnunet.records import read_record
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import shortened


def stop_at_unusable_splits(file: Path, fold: int, cases: Collection[str]) -> None:
    """Exit with one message if nnU-Net can neither use the folds in a file nor create its own.

    A fold that the file lacks is accepted: nnU-Net warns, and draws that fold itself.

    Args:
        file: splits_final.json, which need not exist.
        fold: The fold to train.
        cases: All preprocessed cases.

    Raises:
        SystemExit: The folds cannot be used or created.
    """
    if not file.exists():
        if first_fold(len(cases), has_splits=False) == "all":
            raise SystemExit(
                f"nnU-Net cannot split {len(cases)} cases into five folds: train fold all instead of {fold}, "
                f"or write {file}"
            )
        return
    try:
        splits = read_record(file, Splits)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for split in splits[fold : fold + 1]:
        if not split.train or not split.val:
            raise SystemExit(f"{file}: fold {fold} needs cases for both training and validation")
        if missing := sorted({*split.train, *split.val}.difference(cases)):
            raise SystemExit(
                f"{file}: {len(missing)} cases of fold {fold} are not among the {len(cases)} preprocessed ones: "
                f"{shortened(missing)}. Correct the file, or preprocess these cases"
            )

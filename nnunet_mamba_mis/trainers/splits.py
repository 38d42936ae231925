"""The folds in splits_final.json, compared with the preprocessed cases."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nnunet_mamba_mis.nnunet.dataset import Splits, first_fold
from nnunet_mamba_mis.nnunet.records import read_record
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import shortened


def stop_at_unusable_splits(file: Path, fold: int, cases: Collection[str]) -> None:
    """End with one message if nnU-Net can neither take the folds from a file nor make its own.

    A fold that the file lacks passes: nnU-Net warns, and draws one.

    Args:
        file: splits_final.json, which need not exist.
        fold: The one to train.
        cases: All that are preprocessed.

    Raises:
        SystemExit: It cannot.
    """
    if not file.exists():
        if first_fold(len(cases), has_splits=False) == "all":
            raise SystemExit(
                f"nnU-Net cannot make five folds of {len(cases)} cases: train fold all instead of {fold}, "
                f"or write {file}"
            )
        return
    try:
        splits = read_record(file, Splits)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for split in splits[fold : fold + 1]:
        if not split.train or not split.val:
            raise SystemExit(f"{file}: fold {fold} needs cases for training and for validation")
        if missing := sorted({*split.train, *split.val}.difference(cases)):
            raise SystemExit(
                f"{file}: {len(missing)} cases of fold {fold} are not among the {len(cases)} preprocessed ones: "
                f"{shortened(missing)}. Correct the file, or preprocess them"
            )

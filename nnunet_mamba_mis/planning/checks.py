"""Checks before planning, without nnU-Net's planner, which takes seconds to import."""

from __future__ import annotations

import math
import re
from pathlib import Path

from nnunet_mamba_mis.nnunet.dataset import FINGERPRINT_FILE, Dataset, Fingerprint, Splits
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE, SPLITS_FILE, dataset_id, find_dataset_name, folder
from nnunet_mamba_mis.nnunet.records import read_record
from nnunet_mamba_mis.planning import STOCK_PLANS_NAME
from nnunet_mamba_mis.utils.errors import UserError

# TRAINER__PLANS__CONFIGURATION is the name of a folder, for which file systems allow 255 bytes
_LONGEST_NAME = 100


def check_options(gpu_memory: float, plans_name: str) -> None:
    """Check the memory in GB and the name of the plans.

    Raises:
        UserError: A value is not allowed.
    """
    if not 0 < gpu_memory < math.inf:
        raise UserError(f"--gpu-memory {gpu_memory:g}: it must be above 0 and finite")
    # nnU-Net uses the name in a folder's name, which it splits at double underscores
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]|_(?!_))*(?<![_.-])", plans_name):
        raise UserError(f"--plans-name {plans_name}: use letters, digits, '.', '-', and single '_' between them")
    if len(plans_name) > _LONGEST_NAME:
        raise UserError(f"--plans-name {plans_name}: use at most {_LONGEST_NAME} characters")
    if plans_name == STOCK_PLANS_NAME:
        raise UserError(f"--plans-name {STOCK_PLANS_NAME}: nnU-Net's own plans have this name, choose another")


def find_fingerprinted(dataset: str) -> Path:
    """Return a dataset's folder in nnUNet_preprocessed, which has the dataset's full name.

    Args:
        dataset: Id or full name.

    Raises:
        UserError: The dataset does not exist, has no fingerprint yet, or its files cannot be used.
    """
    raw, preprocessed = folder("nnUNet_raw"), folder("nnUNet_preprocessed")
    name = find_dataset_name(dataset)
    description = raw / name / DATASET_FILE
    if not description.exists():
        raise UserError(f"{description} does not exist: planning needs the raw dataset")
    if not (preprocessed / name / FINGERPRINT_FILE).exists():
        raise UserError(f"{name} has no fingerprint yet: run {_fingerprint_command(name)} first")
    return preprocessed / name


def read_dataset(folder_of_dataset: Path) -> Dataset:
    """Check all files that nnU-Net's planner reads, and return the dataset's description.

    Args:
        folder_of_dataset: The dataset's folder in nnUNet_preprocessed.

    Raises:
        UserError: A file cannot be used; the message names it and the way out.
    """
    name = folder_of_dataset.name
    raw = folder("nnUNet_raw") / name
    dataset = read_record(raw / DATASET_FILE, Dataset)
    if dataset.numTraining is None:
        raise UserError(f"{raw / DATASET_FILE}: numTraining: Field required")
    again = f"remove it, and run {_fingerprint_command(name)}"
    read_record(folder_of_dataset / FINGERPRINT_FILE, Fingerprint, again)
    _check_splits(raw / SPLITS_FILE, folder_of_dataset / SPLITS_FILE)
    if dataset.dataset is None and not any((raw / "imagesTr").glob(f"*_0000{dataset.file_ending}")):
        raise UserError(f"{raw / 'imagesTr'} has no image that ends with _0000{dataset.file_ending}")
    return dataset


def _check_splits(raw: Path, preprocessed: Path) -> None:
    """Check that the folds in nnUNet_raw equal nnU-Net's copy in nnUNet_preprocessed, if both exist."""
    if not raw.exists():
        return
    given = read_record(raw, Splits)
    if not preprocessed.exists():
        return
    copied = read_record(preprocessed, Splits)
    same = [
        set(ours.train) == set(theirs.train) and set(ours.val) == set(theirs.val)
        for ours, theirs in zip(given, copied, strict=False)
    ]
    if len(copied) < len(given) or not all(same):
        name = raw.parent.name
        raise UserError(
            f"{SPLITS_FILE} of {name} differs between nnUNet_raw and nnUNet_preprocessed: remove the wrong one"
        )


def _fingerprint_command(name: str) -> str:
    return f"nnUNetv2_plan_and_preprocess -d {dataset_id(name)} -c 2d --verify_dataset_integrity"

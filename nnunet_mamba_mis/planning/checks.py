"""What can be checked before planning, without nnU-Net's planner, which takes seconds to import."""

from __future__ import annotations

import math
import re
from pathlib import Path

from nnunet_mamba_mis.nnunet.paths import DATASET_FILE, dataset_id, find_dataset_name, folder
from nnunet_mamba_mis.planning import STOCK_PLANS_NAME
from nnunet_mamba_mis.utils.errors import UserError


def check_options(gpu_memory: float, plans_name: str) -> None:
    """Check the memory in GB and the name of the plans.

    Raises:
        UserError: A value is not allowed.
    """
    if not 0 < gpu_memory < math.inf:
        raise UserError(f"--gpu-memory {gpu_memory:g}: it must be above 0 and finite")
    # nnU-Net makes a folder of the name, and takes it apart at double underscores
    if not re.fullmatch(r"[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*", plans_name):
        raise UserError(f"--plans-name {plans_name}: use letters, digits, '.', '-', and single '_' between them")
    if plans_name == STOCK_PLANS_NAME:
        raise UserError(f"--plans-name {STOCK_PLANS_NAME}: nnU-Net's own plans have this name")


def find_fingerprinted(dataset: str) -> Path:
    """Return a dataset's folder in nnUNet_preprocessed; its name is the dataset's.

    Args:
        dataset: Id or full name.

    Raises:
        UserError: The dataset does not exist, or has no fingerprint yet.
    """
    raw, preprocessed = folder("nnUNet_raw"), folder("nnUNet_preprocessed")
    name = find_dataset_name(dataset)
    description = raw / name / DATASET_FILE
    if not description.exists():
        raise UserError(f"{description} does not exist: planning reads it, and lists the images beside it")
    if not (preprocessed / name / "dataset_fingerprint.json").exists():
        raise UserError(
            f"{name} has no fingerprint yet: run nnUNetv2_plan_and_preprocess -d {dataset_id(name)} -c 2d "
            "--verify_dataset_integrity first"
        )
    return preprocessed / name

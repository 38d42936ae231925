"""What has to be there before the demo starts."""

from __future__ import annotations

from pathlib import Path

import torch

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import find_executable

# nnU-Net makes five folds of the training images
_FEWEST_TRAINING_IMAGES = 5
_MOST_UNSEEN = 100


def number_to_hold_out(source: Path) -> int:
    """Return how many images of a source to keep apart: a tenth.

    Raises:
        UserError: It is not laid out as Kvasir-SEG, or has too few images.
    """
    images = len(DATASETS["kvasir-seg"].find_cases([source]))
    hold_out = max(1, min(_MOST_UNSEEN, images // 10))
    if images - hold_out < _FEWEST_TRAINING_IMAGES:
        raise UserError(f"{source} has {images} images: at least {_FEWEST_TRAINING_IMAGES + 1} are needed")
    return hold_out


def check_commands() -> None:
    """Raise UserError if nnU-Net's commands are not installed."""
    for name in ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"):
        find_executable(name)


def usable_device(wanted: str | None) -> str:
    """Return the device to use, "cpu" or "cuda"; without a wish, the GPU if there is one.

    Raises:
        UserError: There is no usable GPU, but one is wanted.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise UserError("-device cuda: there is no usable CUDA device (`mamba_mis doctor` says why); use -device cpu")
    return wanted or ("cuda" if has_gpu else "cpu")

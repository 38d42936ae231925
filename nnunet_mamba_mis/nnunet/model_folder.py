"""A trained model's folder, as nnU-Net writes it: plans.json, dataset.json and a checkpoint for each fold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nnunet_mamba_mis.nnunet.plans import Configuration, Plans
from nnunet_mamba_mis.nnunet.records import check_record, read_record
from nnunet_mamba_mis.nnunet.results import CHECKPOINTS, PLANS_FILE, fold_folder
from nnunet_mamba_mis.utils.errors import UserError

if TYPE_CHECKING:
    from nnunet_mamba_mis.nnunet.checkpoint import Network

T = TypeVar("T")
C = TypeVar("C", bound=Configuration)


class PlanarConfiguration(Configuration):
    """A 2D configuration with all settings that prepare images."""

    patch_size: tuple[int, int]
    spacing: tuple[float, float]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]


def read_model_file(path: Path, kind: type[T]) -> T:
    """Return the content of plans.json or dataset.json in a model's folder.

    Raises:
        UserError: The file is missing, or cannot be used.
    """
    if not os.path.exists(path):  # also False for names that no file can have
        raise UserError(
            f"{path} does not exist: -m takes the folder that nnUNetv2_train made, "
            "nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION"
        )
    return read_record(path, kind)


def read_fold(model: Path, fold: int | str, checkpoint: str = CHECKPOINTS[0], choose: str = "-f") -> Network:
    """Return the checkpoint of a fold, without running code that may be in it.

    Args:
        model: Folder of the model.
        fold: 0, 1, …, or "all".
        checkpoint: Name of the file in the fold's folder.
        choose: Options with which the user chooses another checkpoint.

    Raises:
        UserError: The file is missing, or cannot be used.
    """
    from nnunet_mamba_mis.nnunet.checkpoint import Network, read_checkpoint  # torch takes seconds to import

    path = fold_folder(model, fold) / checkpoint
    if not os.path.exists(path):
        existing = sorted(str(other.relative_to(model)) for other in model.glob("fold_*/*.pth"))
        choices = f"choose with {choose}: {', '.join(existing)}" if existing else "train a fold first"
        raise UserError(f"{path} does not exist: {choices}")
    return read_checkpoint(path, Network)


def planned(model: Path, plans: Plans, name: str, kind: type[C]) -> C:
    """Return the configuration that a checkpoint names.

    Raises:
        UserError: The plans lack the configuration, or the configuration is 3D or lacks what `kind` needs.
    """
    path = model / PLANS_FILE
    if name not in plans.configurations:
        raise UserError(f"{path} has no configuration {name!r}, which the checkpoint names")
    configuration = plans.configuration(name)
    if len(configuration.patch_size or ()) == 3:
        raise UserError(f"{model} is a 3D model (configuration {name}): only 2D models can be used here")
    return check_record(dict(configuration), kind, f"{path}: configurations.{name}")

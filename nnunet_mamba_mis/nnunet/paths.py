"""nnU-Net's three folders, and the names of datasets in them.

Importing this module does not import nnU-Net, which takes seconds.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from nnunet_mamba_mis.utils.errors import UserError

# environment variable → content of its folder
FOLDERS = {
    "nnUNet_raw": "datasets in nnU-Net's raw format",
    "nnUNet_preprocessed": "preprocessed datasets; on a fast disk",
    "nnUNet_results": "trained models",
}
DATASET_FILE = "dataset.json"
SPLITS_FILE = "splits_final.json"
_DATASET = re.compile(r"Dataset([0-9]{3})_([^/\\\0]+)")
_ID = re.compile(r"0*[0-9]{1,3}")


def not_set(variable: str) -> str:
    """Return the message for a variable that is not set, with the way out."""
    return f"{variable} is not set: export {variable}=/path   # {FOLDERS[variable]}"


def folder(variable: str) -> Path:
    """Return one of nnU-Net's folders, which need not exist.

    Raises:
        UserError: The variable is not set, or begins with ~.
    """
    path = folder_if_set(variable)
    if path is None:
        raise UserError(not_set(variable))
    return path


def folder_if_set(variable: str) -> Path | None:
    """Return one of nnU-Net's folders, or None if its variable is not set.

    Raises:
        UserError: The value begins with ~, which nnU-Net would take for the name of a folder.
    """
    value = os.environ.get(variable)
    if value and value.startswith("~"):
        home = os.path.expanduser(value)
        raise UserError(f"{variable}={value} begins with a ~ that the shell did not expand: export {variable}={home}")
    return Path(value) if value else None


def dataset_name(dataset_id: int, name: str) -> str:
    """Return nnU-Net's full name of a dataset, Dataset027_Name."""
    return f"Dataset{dataset_id:03d}_{name}"


def is_dataset_name(name: str) -> bool:
    """Return whether nnU-Net would take a folder of this name for a dataset."""
    return _DATASET.fullmatch(name) is not None


def dataset_id(name: str) -> int:
    """Return the id in a dataset's full name.

    Raises:
        ValueError: The name is not a dataset's full name.
    """
    match = _DATASET.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is not the full name of a dataset, such as Dataset027_Name")
    return int(match[1])


def check_dataset(dataset: str) -> None:
    """Check the id or name that the user gives for a dataset.

    Raises:
        UserError: `dataset` is neither an id nor a full name.
    """
    if not _ID.fullmatch(dataset) and not is_dataset_name(dataset):
        raise UserError(f"{dataset} is neither the id nor the full name of a dataset, such as 27 or Dataset027_Name")


def find_dataset_name(dataset: str) -> str:
    """Return the full name of a dataset in one of nnU-Net's folders.

    Args:
        dataset: Id or full name.

    Raises:
        UserError: `dataset` is neither an id nor a full name, or the id belongs to no folder or to several. The message
            quotes `dataset`.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    check_dataset(dataset)
    try:
        return str(maybe_convert_to_dataset_name(dataset))
    except RuntimeError as error:
        raise UserError(f"{dataset}: {' '.join(str(error).split())}") from None

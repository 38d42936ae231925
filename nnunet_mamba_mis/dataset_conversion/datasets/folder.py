"""Any folder of images with a folder of masks."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.labels import parse_labels
from nnunet_mamba_mis.dataset_conversion.layouts import find_in_folders
from nnunet_mamba_mis.utils.errors import UserError

DATASETS = (
    Dataset(
        name="folder",
        folder_name="Folder",
        title="your own dataset: a folder of images and a folder of masks, or one folder with both",
        num_images="any",
        size="any",
        layout=(
            "-i IMAGES MASKS [--stems IMAGE:MASK]\nor, if one folder has both, -i FOLDER --stems IMAGE:MASK\n"
            "where {} is the shared part of the names, as in {}:{}_mask\n"
            "[--labels NAME=VALUE ...] for masks of several classes"
        ),
        labels={"background": 0, "foreground": 1},
        reference="",
        url="",
        licence="yours",
        find_cases=find_in_folders,
        empty_masks=True,
        duplicates=False,
    ),
)


def with_stems(dataset: Dataset, stems: str) -> Dataset:
    """Return the dataset with a rule for the names of images and masks.

    Args:
        dataset: This module's dataset.
        stems: The rule, as for `find_in_folders`.

    Raises:
        UserError: `dataset` is another dataset, which has its own names.
    """
    _check_is_folder(dataset, "--stems", "its own names")
    return replace(dataset, find_cases=partial(find_in_folders, stems=stems))


def with_labels(dataset: Dataset, labels: Sequence[str]) -> Dataset:
    """Return the dataset with masks of several classes.

    Args:
        dataset: This module's dataset.
        labels: The classes, as for `parse_labels`.

    Raises:
        UserError: The labels are malformed, or `dataset` is another dataset, which has its own classes.
    """
    _check_is_folder(dataset, "--labels", "its own classes")
    mask = parse_labels(labels)
    return replace(dataset, mask=mask, labels={name: label for label, name in mask.names.items()})


def _check_is_folder(dataset: Dataset, option: str, has: str) -> None:
    if dataset.name != DATASETS[0].name:
        raise UserError(f"{option} can only be used with `convert folder`: {dataset.name} has {has}")

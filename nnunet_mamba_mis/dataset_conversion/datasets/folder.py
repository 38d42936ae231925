"""Any folder of images and folder of masks."""

from dataclasses import replace
from functools import partial

from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.layouts import find_in_two_folders
from nnunet_mamba_mis.utils.errors import UserError

DATASETS = (
    Dataset(
        name="folder",
        folder_name="Folder",
        title="your own: a folder of images, then a folder of masks",
        num_images="any",
        size="any",
        layout="-i IMAGES MASKS [--stems IMAGE:MASK]\nwhere {} is what names share, as in {}:{}_mask",
        labels={"background": 0, "foreground": 1},
        reference="",
        url="",
        licence="yours",
        find_cases=find_in_two_folders,
        empty_masks=True,
        duplicates=False,
    ),
)


def with_stems(dataset: Dataset, stems: str) -> Dataset:
    """Return the dataset with other names of images and masks than equal ones.

    Args:
        dataset: That of this module.
        stems: As `find_in_two_folders` takes them.

    Raises:
        UserError: It is another dataset, which has its own names.
    """
    if dataset not in DATASETS:
        raise UserError(f"--stems is for folder only: {dataset.name} has its own names")
    return replace(dataset, find_cases=partial(find_in_two_folders, stems=stems))

"""Any folder of images and folder of masks."""

from nnunet_mamba_mis.dataset_conversion.base import Dataset
from nnunet_mamba_mis.dataset_conversion.sources import find_in_two_folders

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

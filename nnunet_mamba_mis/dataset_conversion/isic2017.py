"""ISIC 2017, task 1."""

from functools import partial

from nnunet_mamba_mis.dataset_conversion.base import TRAINING, Dataset
from nnunet_mamba_mis.dataset_conversion.sources import ImageSet, find_pairs


def _image_set(part: str, subset: str) -> ImageSet:
    return ImageSet(
        images=f"ISIC-2017_{part}_Data",
        masks=f"ISIC-2017_{part}_Part1_GroundTruth",
        subset=subset,
        mask_ending="_segmentation",
        not_images="_superpixels",
    )


_SETS = (_image_set("Training", TRAINING), _image_set("Validation", "validation"), _image_set("Test_v2", "test"))

ISIC2017 = Dataset(
    name="isic2017",
    folder_name="ISIC2017",
    title="ISIC 2017, task 1: skin lesions in dermoscopy images",
    num_images="2000+150+600",
    layout=(
        "ISIC-2017_Training_Data/*.jpg\n"
        "ISIC-2017_Training_Part1_GroundTruth/*.png\n"
        "and, as test sets, the same of Validation and Test_v2 if there"
    ),
    labels={"background": 0, "lesion": 1},
    reference=(
        "Codella et al., Skin Lesion Analysis Toward Melanoma Detection: A Challenge at ISBI 2017, arXiv:1710.05006; "
        "https://challenge.isic-archive.com/data/#2017"
    ),
    licence="CC-0",
    find_cases=partial(find_pairs, sets=_SETS),
)

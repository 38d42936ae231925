"""ISIC 2016, 2017 and 2018: the challenges' lesion segmentation tasks."""

from collections.abc import Mapping

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING, Dataset
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts

_LABELS = {"background": 0, "lesion": 1}

# identifier → the sets that contain it, as "year subset"
_IN_TWO_YEARS = {"ISIC_0016072": ("2017 test", f"2018 {TRAINING}")}


def _image_set(images: str, masks: str, subset: str) -> ImageSet:
    return ImageSet(
        images, masks, subset, image_stem=r"(ISIC_\d+)", mask_stem=r"(ISIC_\d+)_segmentation", others=".+_superpixels"
    )


def _shared_with_another_year(year: str, subset_of: Mapping[str, str]) -> list[str]:
    warnings = []
    for identifier, places in _IN_TWO_YEARS.items():
        here = f"{year} {subset_of.get(identifier, '')}"
        if here in places:
            there = " and ".join(place.replace(TRAINING, "training") for place in places if place != here)
            warnings.append(
                f"{identifier} is also in ISIC's {there} set: training on one and testing on the other is a data leak"
            )
    return warnings


def _year(
    year: str,
    images: str,
    masks: str,
    parts: Mapping[str, str],
    num_images: str,
    size: str,
    reference: str,
    licence: str,
) -> Dataset:
    """Return a year's dataset; `parts` maps each name that {} in `images` and `masks` stands for to its subset."""
    return Dataset(
        num_images=num_images,
        size=size,
        reference=reference,
        licence=licence,
        name=f"isic{year}",
        folder_name=f"ISIC{year}",
        title=f"ISIC {year}: skin lesions in dermoscopy images",
        layout=f"{images.format('Training')}/*.jpg\n{masks.format('Training')}/*.png\n"
        f"and, optionally, the same for the test sets: {' and '.join(part for part in parts if part != 'Training')}",
        labels=_LABELS,
        url=f"https://challenge.isic-archive.com/data/#{year}",
        find_cases=layouts(
            [_image_set(images.format(part), masks.format(part), subset) for part, subset in parts.items()]
        ),
        official_validation="validation" if "validation" in parts.values() else "",
        warnings=lambda subset_of: _shared_with_another_year(year, subset_of),
    )


DATASETS = (
    _year(
        "2016",
        "ISBI2016_ISIC_Part1_{}_Data",
        "ISBI2016_ISIC_Part1_{}_GroundTruth",
        {"Training": TRAINING, "Test": "test"},
        num_images="900+379",
        size="840 MB",
        reference="Gutman et al., Skin Lesion Analysis toward Melanoma Detection: ISBI 2016, arXiv:1605.01397",
        licence="CC-0",
    ),
    _year(
        "2017",
        "ISIC-2017_{}_Data",
        "ISIC-2017_{}_Part1_GroundTruth",
        {"Training": TRAINING, "Validation": "validation", "Test_v2": "test"},
        num_images="2000+150+600",
        size="13 GB",
        reference="Codella et al., Skin Lesion Analysis Toward Melanoma Detection: ISBI 2017, arXiv:1710.05006",
        licence="CC-0",
    ),
    _year(
        "2018",
        "ISIC2018_Task1-2_{}_Input",
        "ISIC2018_Task1_{}_GroundTruth",
        {"Training": TRAINING, "Validation": "validation", "Test": "test"},
        num_images="2594+100+1000",
        size="13 GB",
        reference="Codella et al., Skin Lesion Analysis Toward Melanoma Detection 2018, arXiv:1902.03368",
        licence="CC-0, except images named in its LICENSE.txt",
    ),
)

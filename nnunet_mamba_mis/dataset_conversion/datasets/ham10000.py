"""HAM10000: some lesions have several images, and a CSV file names the lesion of each image."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.dataset import Case, Dataset, Grouping
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts
from nnunet_mamba_mis.dataset_conversion.tree import Tree
from nnunet_mamba_mis.utils.errors import UserError

_METADATA = "HAM10000_metadata"


def _lesions(sources: Sequence[Path], cases: Sequence[Case]) -> Mapping[str, str]:
    """Return the lesion of each image."""
    files = [path for paths in Tree(sources).values() for path in paths if path.stem.lower() == _METADATA.lower()]
    if not files:
        raise UserError(
            f"found no {_METADATA} in {', '.join(map(str, sources))}. It tells which images show the same lesion, so "
            "that folds do not separate them: give it with -i, too"
        )
    text = files[0].read_text(encoding="utf-8-sig", errors="replace")
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t" if "\t" in text.partition("\n")[0] else ","))
    if not rows or not {"image_id", "lesion_id"} <= rows[0].keys():
        raise UserError(f"{files[0]} lacks the columns image_id and lesion_id: download it again")
    return {row["image_id"]: row["lesion_id"] for row in rows if row["image_id"] and row["lesion_id"]}


DATASETS = (
    Dataset(
        name="ham10000",
        folder_name="HAM10000",
        title="HAM10000: skin lesions in dermoscopy images",
        num_images="10015",
        size="3 GB",
        layout=(
            "HAM10000_images_part_{1,2}/*.jpg\nHAM10000_segmentations_lesion_tschandl/*.png\n"
            f"{_METADATA} (CSV, with or without a suffix)"
        ),
        labels={"background": 0, "lesion": 1},
        reference="Tschandl et al., The HAM10000 dataset, Scientific Data 2018",
        url="https://doi.org/10.7910/DVN/DBW86T",
        licence="CC BY-NC 4.0",
        find_cases=layouts(
            [
                ImageSet(
                    "HAM10000_images_part_*",
                    "HAM10000_segmentations_lesion_tschandl",
                    image_stem=r"(ISIC_\d+)",
                    mask_stem=r"(ISIC_\d+)_segmentation",
                    several=True,
                )
            ]
        ),
        grouping=Grouping("lesion_id of HAM10000", _lesions),
    ),
)

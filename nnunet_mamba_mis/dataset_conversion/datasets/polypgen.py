"""PolypGen: single frames from six centres."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.dataset import Case, Dataset, Grouping
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts

_CENTRES = ("C1", "C2", "C3", "C4", "C5", "C6")


def _centres(sources: Sequence[Path], cases: Sequence[Case]) -> Mapping[str, str]:
    return {case.identifier: case.identifier.partition("_")[0] for case in cases}


DATASETS = (
    Dataset(
        name="polypgen",
        folder_name="PolypGen",
        title="PolypGen: polyps in single frames from six centres",
        num_images="1537",
        size="4 GB",
        layout="data_C1/images_C1/*.jpg\ndata_C1/masks_C1/*_mask.jpg\nand so on up to C6 (sequences are ignored)",
        labels={"background": 0, "polyp": 1},
        reference="Ali et al., A multi-centre polyp detection and segmentation dataset, Scientific Data 2023",
        url="https://www.synapse.org/PolypGen",
        licence="CC BY 4.0, registration required",
        find_cases=layouts(
            [
                # identifiers are prefixed with the centre, as two centres may use the same name
                ImageSet(f"images_{centre}", f"masks_{centre}", mask_stem="(.+)_mask", identifier=f"{centre}_{{}}")
                for centre in _CENTRES
            ]
        ),
        grouping=Grouping("centre of PolypGen (patients are not identified, but each is from one centre)", _centres),
        empty_masks=True,
    ),
)

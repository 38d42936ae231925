"""Kvasir-SEG."""

from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts

DATASETS = (
    Dataset(
        name="kvasir-seg",
        folder_name="KvasirSEG",
        title="Kvasir-SEG: polyps in colonoscopy images",
        num_images="1000",
        size="44 MB",
        layout="images/*.jpg\nmasks/*.jpg",
        labels={"background": 0, "polyp": 1},
        reference="Jha et al., Kvasir-SEG: A Segmented Polyp Dataset, MMM 2020",
        url="https://datasets.simula.no/kvasir-seg",
        licence="research and education only",
        find_cases=layouts([ImageSet("images", "masks")]),
    ),
)

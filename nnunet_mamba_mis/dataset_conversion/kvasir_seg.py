"""Kvasir-SEG."""

from functools import partial

from nnunet_mamba_mis.dataset_conversion.base import Dataset
from nnunet_mamba_mis.dataset_conversion.sources import ImageSet, find_pairs

KVASIR_SEG = Dataset(
    name="kvasir-seg",
    folder_name="KvasirSEG",
    title="Kvasir-SEG: polyps in colonoscopy images",
    num_images="1000",
    layout="images/*.jpg\nmasks/*.jpg",
    labels={"background": 0, "polyp": 1},
    reference="Jha et al., Kvasir-SEG: A Segmented Polyp Dataset, MMM 2020; https://datasets.simula.no/kvasir-seg",
    licence="research and education only, see https://datasets.simula.no/kvasir-seg",
    find_cases=partial(find_pairs, sets=(ImageSet("images", "masks"),)),
)

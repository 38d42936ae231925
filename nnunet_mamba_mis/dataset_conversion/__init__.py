"""Converters of public datasets into nnU-Net's raw format: one file a dataset, listed here."""

from nnunet_mamba_mis.dataset_conversion.base import Dataset
from nnunet_mamba_mis.dataset_conversion.isic2017 import ISIC2017
from nnunet_mamba_mis.dataset_conversion.kvasir_seg import KVASIR_SEG

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (ISIC2017, KVASIR_SEG)}

"""Converters from public datasets to nnU-Net's raw format: one file per dataset, in `datasets`."""

from importlib import import_module
from pkgutil import iter_modules

from nnunet_mamba_mis.dataset_conversion import datasets
from nnunet_mamba_mis.dataset_conversion.dataset import Dataset


def _all_datasets() -> dict[str, Dataset]:
    modules = (import_module(f"{datasets.__name__}.{module.name}") for module in iter_modules(datasets.__path__))
    return {dataset.name: dataset for module in modules for dataset in module.DATASETS}


DATASETS: dict[str, Dataset] = _all_datasets()

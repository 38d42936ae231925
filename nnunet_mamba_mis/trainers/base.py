"""nnU-Net's trainer, configured by class attributes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mamba_mis.nnunet.dataset import Dataset
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE, SPLITS_FILE, folder
from nnunet_mamba_mis.nnunet.plans import check_plans
from nnunet_mamba_mis.nnunet.records import check_json
from nnunet_mamba_mis.nnunet.results import fold_folder
from nnunet_mamba_mis.trainers.fold_lock import lock_fold
from nnunet_mamba_mis.trainers.labels import stop_at_unknown_labels
from nnunet_mamba_mis.trainers.pretrained_weights import replace_loader
from nnunet_mamba_mis.trainers.splits import stop_at_unusable_splits
from nnunet_mamba_mis.utils.errors import UserError


class ConfiguredTrainer(nnUNetTrainer):
    """nnU-Net's trainer: variants set class attributes, and unusable input ends training with one message.

    No subclass needs a constructor: such a constructor would have to repeat nnU-Net's five parameters by name, and
    nnU-Net's own constructor would overwrite hyperparameters that the subclass had set before.

    Raises:
        SystemExit: Training cannot work with these plans, this dataset.json, configuration, device or environment, or
            another process works on the fold.
    """

    # nnU-Net's defaults; the constructor sets the instance's hyperparameters from them
    initial_lr: float = 1e-2
    weight_decay: float = 3e-5
    oversample_foreground_percent: float = 0.33
    epochs: ClassVar[int] = 1000
    iterations_per_epoch: ClassVar[int] = 250
    validation_iterations_per_epoch: ClassVar[int] = 50
    save_every: int = 50
    # name in messages, for a network that only works with 2D configurations
    planar_network: ClassVar[str | None] = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        # check before nnU-Net creates folders and a log
        try:
            check_plans(plans)
            check_json(json.dumps(dataset_json), Dataset, f"{DATASET_FILE} cannot be used")
        except UserError as error:
            raise SystemExit(str(error)) from None
        manager = PlansManager(plans)
        results = _stop_if_unusable(manager, configuration, device, self.planar_network)
        model = results / manager.dataset_name / f"{type(self).__name__}__{manager.plans_name}__{configuration}"
        # held as long as this trainer exists, because the final validation follows training
        self.fold_lock = lock_fold(fold_folder(model, fold))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = type(self).initial_lr
        self.weight_decay = type(self).weight_decay
        self.oversample_foreground_percent = type(self).oversample_foreground_percent
        self.num_epochs = self.epochs
        self.num_iterations_per_epoch = self.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.validation_iterations_per_epoch
        self.save_every = type(self).save_every

    def initialize(self) -> None:
        """Initialize, and replace the function with which nnU-Net then loads `-pretrained_weights`."""
        super().initialize()
        replace_loader(self.print_to_log_file)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split, unless it cannot be used or created.

        Raises:
            SystemExit: splits_final.json does not fit the preprocessed cases, or there are too few cases.
        """
        if self.fold != "all":
            preprocessed = self.preprocessed_dataset_folder
            cases = infer_dataset_class(preprocessed).get_identifiers(preprocessed)
            stop_at_unusable_splits(Path(self.preprocessed_dataset_folder_base) / SPLITS_FILE, self.fold, cases)
        return super().do_split()

    def get_tr_and_val_datasets(self) -> tuple[nnUNetBaseDataset, nnUNetBaseDataset]:
        """Return nnU-Net's datasets, unless a case has a label that dataset.json lacks: the loss would fail on it.

        Raises:
            SystemExit: A case has such a label.
        """
        datasets = super().get_tr_and_val_datasets()
        if self.local_rank == 0:
            stop_at_unknown_labels(datasets, self.label_manager)
        return datasets


def _stop_if_unusable(
    manager: PlansManager, configuration: str, device: torch.device, planar_network: str | None
) -> Path:
    """Return nnUNet_results, or exit with one message if training cannot work; nnU-Net would print a traceback."""
    usable = [
        name
        for name in manager.available_configurations
        if not planar_network or len(manager.get_configuration(name).patch_size) == 2
    ]
    choices = f"use one of: {', '.join(usable)}" if usable else "these plans have no 2D configuration"
    if configuration not in manager.available_configurations:
        raise SystemExit(f"Configuration {configuration!r} is not in the plans of {manager.dataset_name}: {choices}.")
    if configuration not in usable:
        raise SystemExit(
            f"{planar_network} is a 2D network and cannot train configuration {configuration!r}: {choices}."
        )
    try:
        results = folder("nnUNet_results")
    except UserError as error:
        raise SystemExit(str(error)) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "No usable CUDA device was found (`mamba_mis doctor` shows why): add -device cpu to the command."
        )
    return results

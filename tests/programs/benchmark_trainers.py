"""Trainers for the benchmark's tests: brief ones, failing ones, and one slow enough to be stopped."""

import os
import time
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_mamba_mis import trainers  # importing the classes by name would hide those of brief_trainers.py


class Quick(nnUNetTrainer):
    """nnU-Net's own trainer, with two iterations."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1


class Failing(Quick):
    """A trainer that fails in its first step."""

    def train_step(self, batch):
        raise ValueError("the images are upside down")


class Long(trainers.nnUNetTrainerMambaMIS_S, nnUNetTrainerNoDA):
    """A trainer of this package that takes some seconds."""

    epochs, iterations_per_epoch, validation_iterations_per_epoch = 8, 2, 1

    def train_step(self, batch):
        time.sleep(0.4)
        return super().train_step(batch)


class Refusing(nnUNetTrainer):
    """A trainer that fails once a file appears."""

    def on_train_start(self):
        while not Path(os.environ["nnUNet_results"], "refuse").exists():
            time.sleep(0.1)
        raise ValueError("not today")

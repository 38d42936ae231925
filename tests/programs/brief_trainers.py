"""Brief versions of all trainers, under the same names.

nnU-Net searches the folders of nnUNet_extTrainer in order, so these trainers hide the ones that they derive from.
nnU-Net's own trainer cannot be hidden, so its brief version has another name.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_mamba_mis import trainers

# the paper's batch of 32 at 256 × 256 takes minutes on a CPU
BRIEF = {"recipe_batch_size": 1, "epochs": 1, "iterations_per_epoch": 1, "validation_iterations_per_epoch": 1}
for name in trainers.__all__:
    globals()[name] = type(name, (getattr(trainers, name),), BRIEF)


class Learning(trainers.nnUNetTrainerMambaMIS_S):
    """Learns to segment bright discs, with the same result in every run."""

    epochs, iterations_per_epoch, validation_iterations_per_epoch = 1, 40, 1
    initial_lr = 3e-3

    def initialize(self):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        super().initialize()


class Frozen(trainers.nnUNetTrainerMambaMIS):
    """Does not change the weights."""

    epochs, iterations_per_epoch, validation_iterations_per_epoch = 1, 1, 1
    initial_lr = 0.0


class Short(trainers.nnUNetTrainerMambaMIS_S):
    """Has a name that no trainer of this package has."""

    epochs, iterations_per_epoch, validation_iterations_per_epoch = 1, 9, 1


class Broken(Short):
    """Has a NaN in the images of the second and third step, and of every step from `broken_from` on."""

    iterations_per_epoch = 30
    broken_from = 5

    def train_step(self, batch):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps in (2, 3) or self.steps >= self.broken_from:
            batch["data"][0, 0, 0, 0] = float("nan")
        return super().train_step(batch)


class Recovering(Broken):
    """Has a NaN only in the images of the second and third step."""

    epochs, iterations_per_epoch, broken_from = 1, 6, 99


class nnUNetTrainer_brief(nnUNetTrainer):
    """nnU-Net's own trainer, with one iteration."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 1, 1

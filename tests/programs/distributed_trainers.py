"""Trainers for runs with several processes, in a module like a user's."""

import random
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_S
from support.ddp_on_cpu import OnCPU


class TwoProcesses(OnCPU, nnUNetTrainerMambaMIS_S, nnUNetTrainerNoDA):
    architecture: ClassVar = {"variant": "S", "stem": "conv"}  # has convolutions for Muon
    epochs, iterations_per_epoch, validation_iterations_per_epoch = 3, 3, 1
    ema_decay = 0.9
    muon = True

    def initialize(self):
        # a resumed run gets other seeds, which must not change the result: only the first run's seeds count
        seed = dist.get_rank() + 10 * Path(self.output_folder, "debug.json").exists()
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        super().initialize()


class TwoStopped(TwoProcesses):
    pass


class TwoLocked(TwoProcesses):
    pass


class TwoLong(TwoProcesses):
    epochs = 1000


class OnGPU(nnUNetTrainerMambaMIS_S):
    epochs, iterations_per_epoch, validation_iterations_per_epoch = 2, 50, 2

"""A user's trainers, which tests stop and resume."""

import random
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_S


class Uninterrupted(nnUNetTrainerMambaMIS_S, nnUNetTrainerNoDA):
    architecture: ClassVar = {"variant": "S", "stem": "conv"}  # has convolutions for Muon
    epochs, iterations_per_epoch, validation_iterations_per_epoch = 5, 4, 2
    ema_decay = 0.9
    muon = True

    def initialize(self):
        # a resumed run gets other seeds, which must not change the result: only the first run's seeds count
        seed = 12 if any(Path(self.output_folder).glob("checkpoint_*.pth")) else 1
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        super().initialize()


class Interrupted(Uninterrupted):
    pass


class WithWorkers(Uninterrupted):
    epochs = 1000


class Locked(WithWorkers):
    pass

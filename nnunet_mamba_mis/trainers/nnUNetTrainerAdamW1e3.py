"""nnU-Net's network with this package's optimiser: the fair baseline of Mamba-MIS."""

from __future__ import annotations

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nnunet_mamba_mis.trainers.parameter_groups import parameter_groups
from nnunet_mamba_mis.trainers.robust import RobustTrainer


class nnUNetTrainerAdamW1e3(RobustTrainer):
    """nnU-Net's network of the plans, any configuration, with AdamW at 1e-3, weight decay 0.01, polynomial decay.

    The Mamba-MIS trainers derive from it and change the network alone, so that a comparison with it is one of networks.
    """

    initial_lr = 1e-3
    weight_decay = 1e-2

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """AdamW with nnU-Net's polynomial decay."""
        groups = parameter_groups(self.network, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.initial_lr)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

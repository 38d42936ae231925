"""nnU-Net's network with this package's optimiser: the fair baseline for Mamba-MIS."""

from __future__ import annotations

from typing import ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nnunet_mamba_mis.trainers.adamw import fused_adamw, parameter_groups
from nnunet_mamba_mis.trainers.muon import MuonAdamW, dense_kernels
from nnunet_mamba_mis.trainers.recipe import RecipeTrainer


class nnUNetTrainerAdamW1e3(RecipeTrainer):
    """nnU-Net's planned network, in any configuration, with AdamW at 1e-3, weight decay 0.01 and polynomial decay.

    The Mamba-MIS trainers derive from this class. Most of them change only the network, so comparing one of them with
    this trainer compares networks. The others also change the recipe: `_conv` and `_conv_noSSM` use Muon and average
    weights, `_paper` has the paper's recipe, and `_demo` has fewer and shorter epochs.
    """

    initial_lr = 1e-3
    weight_decay = 1e-2

    # train convolutions with Muon instead of AdamW
    muon: ClassVar[bool] = False

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """Return the optimiser and the schedule of the recipe."""
        kernels = dense_kernels(self.network) if self.muon else []
        groups = parameter_groups(self.network, self.weight_decay, without=kernels)
        optimizer: Optimizer
        if self.muon:
            groups.append({"params": kernels, "weight_decay": self.weight_decay, "muon": True})
            optimizer = MuonAdamW(groups, self.initial_lr)
        else:
            optimizer = fused_adamw(groups, self.initial_lr)
        return optimizer, self.make_schedule(optimizer)

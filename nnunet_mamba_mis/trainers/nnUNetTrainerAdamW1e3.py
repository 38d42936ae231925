"""nnU-Net's network with this package's optimiser: the fair baseline for Mamba-MIS."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nnunet_mamba_mis.trainers.recipe import RecipeTrainer

# weight decay would pull A towards −1 and D towards 0, which are not neutral values
NO_DECAY = {"A_log", "D", "bias"}
NORMS = (nn.LayerNorm, _NormBase)  # the second is batch and instance norm of any dimension


class nnUNetTrainerAdamW1e3(RecipeTrainer):
    """nnU-Net's planned network, in any configuration, with AdamW at 1e-3, weight decay 0.01 and polynomial decay.

    The Mamba-MIS trainers derive from it and change only the network, so comparing with it compares networks.
    """

    initial_lr = 1e-3
    weight_decay = 1e-2

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """Return AdamW and the schedule of the recipe."""
        groups = parameter_groups(self.network, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.initial_lr, fused=True)
        return optimizer, self.make_schedule(optimizer)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Return optimizer groups: weight decay for all parameters except A_log, D, norms and biases."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            (exempt if name in NO_DECAY or isinstance(module, NORMS) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]

"""nnU-Net's network with this package's optimiser: the fair baseline for Mamba-MIS."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nnunet_mamba_mis.trainers.recipe import RecipeTrainer

# weight decay would pull A towards −1 and D towards 0, which are not neutral values
NO_DECAY = {"A_log", "D", "bias"}
NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase)  # the last is batch and instance norm of any dimension


class nnUNetTrainerAdamW1e3(RecipeTrainer):
    """nnU-Net's planned network, in any configuration, with AdamW at 1e-3, weight decay 0.01 and polynomial decay.

    The Mamba-MIS trainers derive from this class and change only the network, so comparing with it compares networks.
    The exception is `nnUNetTrainerMambaMIS_conv`, which also averages weights.
    """

    initial_lr = 1e-3
    weight_decay = 1e-2

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """Return AdamW and the schedule of the recipe."""
        optimizer = fused_adamw(parameter_groups(self.network, self.weight_decay), self.initial_lr)
        return optimizer, self.make_schedule(optimizer)


def fused_adamw(groups: list[dict], lr: float) -> AdamW:
    """Return the fused AdamW, which stays fused when it resumes a checkpoint of an ordinary AdamW.

    It saves an operator call for each of a network's many small parameters.
    """
    optimizer = AdamW(groups, lr=lr, fused=True)
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: state | {"param_groups": [group | {"fused": True} for group in state["param_groups"]]}
    )
    return optimizer


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Return optimizer groups: weight decay for all parameters except A_log, D, norms and biases."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            (exempt if name in NO_DECAY or isinstance(module, NORMS) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]

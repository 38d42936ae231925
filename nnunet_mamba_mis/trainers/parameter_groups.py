"""Which parameters weight decay applies to."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# decay would pull A towards −1 and D towards 0, which are no neutral values
NO_DECAY = {"A_log", "D", "bias"}
NORMS = (nn.LayerNorm, _NormBase)  # the second is batch and instance norm of any dimension


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Return optimizer groups: weight decay for all parameters but A_log, D, norms and biases."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            (exempt if name in NO_DECAY or isinstance(module, NORMS) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]

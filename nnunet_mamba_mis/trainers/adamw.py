"""AdamW, and which parameters it decays."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import AdamW

# weight decay would pull A towards −1 and D towards 0, which are not neutral values
NO_DECAY = {"A_log", "D", "bias"}
NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase)  # _NormBase: batch and instance norm of any dimension


def fused_adamw(groups: list[dict], lr: float) -> AdamW:
    """Return the fused AdamW, which saves an operator call for each of a network's many small parameters."""
    optimizer = AdamW(groups, lr=lr, fused=True)
    stay_fused(optimizer)
    return optimizer


def stay_fused(optimizer: AdamW) -> None:
    """Keep an optimizer fused even if it loads the state of an ordinary AdamW."""
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: state | {"param_groups": [group | {"fused": True} for group in state["param_groups"]]}
    )


def parameter_groups(network: nn.Module, weight_decay: float, without: Iterable[Tensor] = ()) -> list[dict]:
    """Return optimizer groups: weight decay for all parameters except A_log, D, norms and biases.

    Args:
        network: The network.
        weight_decay: Weight decay of the first group; the second has none.
        without: Parameters that neither group gets.
    """
    left_out = {id(parameter) for parameter in without}
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in left_out:
                (exempt if name in NO_DECAY or isinstance(module, NORMS) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]

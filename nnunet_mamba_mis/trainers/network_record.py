"""Record the network in checkpoints.

Weights alone do not define a network: its discretization, for example, has no weights. nnU-Net records the trainer's
name, but the trainer may be a user's own class. So the optimizer's state carries a record of the network, which nnU-Net
and torch ignore there.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.nnunet.plans import NETWORK_CLASS
from nnunet_mamba_mis.trainers.pretrained_weights import unwrap

# key in the optimizer's state
NETWORK = "network"


def network_record(network: nn.Module) -> dict[str, Any]:
    """Return a network's class and arguments as plain values, or only the class if it is not exactly `MambaMIS`.

    Args:
        network: The network, with or without the wrappers of DDP and torch.compile.
    """
    bare = unwrap(network)
    if type(bare) is MambaMIS:
        return {"class": NETWORK_CLASS, "arguments": bare.arguments}
    return {"class": f"{type(bare).__module__}.{type(bare).__qualname__}", "arguments": {}}

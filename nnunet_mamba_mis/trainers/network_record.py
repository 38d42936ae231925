"""A record of the network in a checkpoint.

Weights alone do not tell what computes with them: discretizations have none. nnU-Net names the trainer in a checkpoint,
which may be a user's own. So a record stands in the state of the optimizer, where nnU-Net and torch ignore it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.nnunet.plans import NETWORK_CLASS
from nnunet_mamba_mis.trainers.pretrained_weights import unwrap

# its name in the optimizer's state
NETWORK = "network"


def network_record(network: nn.Module) -> dict[str, Any]:
    """Return class and arguments as plain values; for networks that are not exactly `MambaMIS` the class alone.

    Args:
        network: The network, also in the wrappers of DDP and torch.compile.
    """
    bare = unwrap(network)
    if type(bare) is MambaMIS:
        return {"class": NETWORK_CLASS, "arguments": bare.arguments}
    return {"class": f"{type(bare).__module__}.{type(bare).__qualname__}", "arguments": {}}

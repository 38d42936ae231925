"""Load weights with the authors' parameter names into our modules."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from nnunet_mamba_mis.architectures.mamba_mis import MambaMIS

# (pattern in the authors' names, replacement in ours), applied in turn
RENAMES = [
    (r"^embed\.", "encoder.stem.conv."),
    (r"^embed_norm\.", "encoder.stem.norm."),
    (r"^(encoder|decoder)\.(\d+)\.", r"\1.stages.\2."),
    (r"^merges\.", "encoder.merges."),
    (r"^expands\.", "decoder.expands."),
    (r"^head\.", "decoder.seg_layers.0."),
    (r"\.dw\.", ".depthwise."),
    (r"\.sg\.", ".spectral_gate."),
    (r"\.sg_norm\.", ".spectral_norm."),
    (r"\.a_log$", ".A_log"),
    (r"\.d$", ".D"),
]


def load_reference_weights(net: MambaMIS, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict with the authors' parameter names into `net`, converted to its dtype and device.

    Args:
        net: A network of the same variant, size and options, without deep supervision: the authors' has one head.
        state_dict: Parameters by the authors' names, for example `encoder.0.blocks.0.scan.scans.1.a_log`.

    Raises:
        ValueError: Parameters are missing, unknown, or have another shape; the message names all of them.
    """
    renamed = {_rename(name): tensor for name, tensor in state_dict.items()}
    own = net.state_dict()
    problems = [f"missing {name}" for name in own if name not in renamed]
    problems += [f"unknown {name}" for name in renamed if name not in own and not _unused_here(name, own)]
    problems += [
        f"{name} is {tuple(renamed[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in renamed and renamed[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError("weights do not fit the network: " + "; ".join(problems))
    net.load_state_dict({name: renamed[name] for name in own})


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _unused_here(name: str, own: Mapping[str, Tensor]) -> bool:
    """Return whether a parameter has no effect: it belongs to a spectral part that this network's block lacks."""
    block, _, part = name.rpartition(".blocks.")
    index, _, parameter = part.partition(".")
    return (
        re.match(r"(norms|projs)\.2\.", parameter) is not None
        and f"{block}.blocks.{index}.fusion.weight" in own
        and f"{block}.blocks.{index}.spectral_gate.weight" not in own
    )

"""`nnUNetv2_train -pretrained_weights` across patch sizes.

nnU-Net compares every weight's shape with the network's before it loads anything, and asks neither trainer nor network.
So the function is wrapped where nnU-Net calls it: weights of another patch size are resampled, then nnU-Net's own
function gets them. It gets everything else as it came.
"""

from __future__ import annotations

import collections
import functools
import io
import sys
from collections.abc import Callable

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights as load_fitting_weights
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_mamba_mis.architectures import MambaMIS, gates_to_resample, resample_spectral_gates

# the second where training is started with `python -m nnunetv2.run.run_training`
CALLERS = ("nnunetv2.run.run_training", "__main__")


def resample_pretrained_weights(log: Callable[[str], None]) -> None:
    """Let nnU-Net load pretrained weights of other patch sizes in this process.

    Args:
        log: Takes the line that says what was resampled.
    """
    for name in CALLERS:
        caller = sys.modules.get(name)
        if hasattr(caller, "load_pretrained_weights"):
            loader = functools.partial(load_pretrained_weights, log=log)
            caller.load_pretrained_weights = loader  # type: ignore[union-attr]


def load_pretrained_weights(network: nn.Module, fname: str, verbose: bool = False, *, log=print) -> None:
    """nnU-Net's `load_pretrained_weights`, for weights of any patch size.

    Args:
        network: The network, also in the wrappers of DDP and torch.compile.
        fname: nnU-Net's checkpoint.
        verbose: Whether nnU-Net's function lists all weights.
        log: Takes the line that says what was resampled.
    """
    bare = _unwrap(network)
    if not isinstance(bare, MambaMIS):
        return load_fitting_weights(network, fname, verbose)
    # as nnU-Net's function reads it, which comes next
    weights = torch.load(fname, map_location="cpu", weights_only=False)["network_weights"]
    gates = gates_to_resample(weights, bare)
    if not gates:
        return load_fitting_weights(network, fname, verbose)
    log(f"Pretrained weights {fname} are of another patch size: resampled {describe(gates)}")
    resampled = io.BytesIO()
    torch.save({"network_weights": resample_spectral_gates(weights, bare)}, resampled)
    resampled.seek(0)
    load_fitting_weights(network, resampled, verbose)


def describe(gates: dict) -> str:
    """What `gates_to_resample` found, in a line."""
    counts = collections.Counter(gates.values())
    sizes = [f"{count} from {_size(old)} to {_size(new)}" for (old, new), count in counts.items()]
    return f"{len(gates)} spectral gates ({', '.join(sizes)})"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _unwrap(network: nn.Module) -> nn.Module:
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network

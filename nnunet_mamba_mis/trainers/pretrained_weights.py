"""`nnUNetv2_train -pretrained_weights` across patch sizes.

nnU-Net compares every weight's shape with the network's before it loads anything, without a hook for trainers. So its
function is wrapped where nnU-Net calls it: weights of another patch size are resampled, then nnU-Net's own function
loads them. Everything else is passed on unchanged. A function that others have put there stays.
"""

from __future__ import annotations

import collections
import functools
import io
import sys
import weakref
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
        log: Method that takes the line that says what was resampled. Its object is not kept alive; without it the line
            is printed.
    """
    method = weakref.WeakMethod(log)
    loader = functools.partial(load_pretrained_weights, log=lambda line: (method() or print)(line))
    for name in CALLERS:
        caller = sys.modules.get(name)
        function = getattr(caller, "load_pretrained_weights", None)
        # nnU-Net's, or what an earlier trainer has put in its place
        if function is load_fitting_weights or getattr(function, "func", None) is load_pretrained_weights:
            caller.load_pretrained_weights = loader  # type: ignore[union-attr]


def load_pretrained_weights(
    network: nn.Module, fname: str, verbose: bool = False, *, log: Callable[[str], None] = print
) -> None:
    """nnU-Net's `load_pretrained_weights`, for weights of any patch size.

    Args:
        network: The network, also in the wrappers of DDP and torch.compile.
        fname: nnU-Net's checkpoint.
        verbose: Whether nnU-Net's function lists all weights.
        log: Takes the line that says what was resampled.
    """
    bare = unwrap(network)
    if not isinstance(bare, MambaMIS):
        return load_fitting_weights(network, fname, verbose)
    # as nnU-Net's function reads it, which comes next
    weights = torch.load(fname, map_location="cpu", weights_only=False)["network_weights"]
    gates = gates_to_resample(weights, bare)
    if not gates:
        return load_fitting_weights(network, fname, verbose)
    log(f"Pretrained weights {fname} are of another patch size: resampled {_describe(gates)}")
    resampled = _NamedBuffer(fname)
    torch.save({"network_weights": resample_spectral_gates(weights, bare)}, resampled)
    resampled.seek(0)
    load_fitting_weights(network, resampled, verbose)


class _NamedBuffer(io.BytesIO):
    """A file in memory, for which nnU-Net prints the name of the one on the disk."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def __str__(self) -> str:
        return str(self.path)


def _describe(gates: dict) -> str:
    """Return what `gates_to_resample` found, in a line."""
    counts = collections.Counter(gates.values())
    sizes = [f"{n} from {old[0]}×{old[1]} to {new[0]}×{new[1]}" for (old, new), n in counts.items()]
    return f"{len(gates)} spectral gates ({', '.join(sizes)})"


def unwrap(network: nn.Module) -> nn.Module:
    """The network in the wrappers of DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network

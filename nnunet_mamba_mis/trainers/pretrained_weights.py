"""`nnUNetv2_train -pretrained_weights` across patch sizes, and from files of strangers.

nnU-Net unpickles the file, whatever is in it, and compares every weight's shape with the network's before it loads
anything, without a hook for trainers. So its function is wrapped where nnU-Net calls it: the file is read without
running code and checked, weights of another patch size are resampled, then nnU-Net's own function loads them. A
function that others have put there stays.
"""

from __future__ import annotations

import collections
import functools
import io
import sys
import weakref
from collections.abc import Callable, Mapping

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights as load_fitting_weights
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_mamba_mis.architectures import MambaMIS, gates_to_resample, resample_spectral_gates
from nnunet_mamba_mis.nnunet.checkpoint import Weights, read_checkpoint, without_code
from nnunet_mamba_mis.utils.errors import UserError

# the second where training is started with `python -m nnunetv2.run.run_training`
CALLERS = ("nnunetv2.run.run_training", "__main__")


def replace_loader(log: Callable[[str], None]) -> None:
    """Let nnU-Net load pretrained weights with `load_pretrained_weights` in this process.

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

    Raises:
        SystemExit: The file is missing or damaged, holds what could run code, or is of another network.
    """
    bare = unwrap(network)
    weights: Mapping[str, Tensor]
    try:
        weights = read_checkpoint(fname, Weights).network_weights
    except UserError as error:
        raise SystemExit(str(error)) from None
    file: str | _NamedBuffer = fname
    if isinstance(bare, MambaMIS) and (gates := gates_to_resample(weights, bare)):
        log(f"Pretrained weights {fname} are of another patch size: resampled {_describe(gates)}")
        weights = resample_spectral_gates(weights, bare)
        file = _NamedBuffer(fname)
        torch.save({"network_weights": weights}, file)
        file.seek(0)
    if misfit := _misfit(weights, bare.state_dict()):
        raise SystemExit(f"-pretrained_weights {fname} is of another network than {type(bare).__name__}: {misfit}")
    with without_code():
        load_fitting_weights(network, file, verbose)


def _misfit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return the first difference that nnU-Net refuses; it leaves out the layers that give the segmentations."""
    for name, tensor in expected.items():
        if ".seg_layers." in name:
            continue
        if name not in weights:
            return f"it has no {name}"
        if weights[name].shape != tensor.shape:
            return f"its {name} has shape {tuple(weights[name].shape)}, the network's {tuple(tensor.shape)}"
    return None


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

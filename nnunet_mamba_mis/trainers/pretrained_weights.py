"""Make `nnUNetv2_train -pretrained_weights` work across patch sizes, and with untrusted files.

nnU-Net unpickles the file, whatever is in it, and compares every weight's shape with the network's before it loads
anything; trainers cannot change this. So this module wraps nnU-Net's function where nnU-Net calls it. The wrapper reads
the file without running code, checks it, resamples weights of another patch size, and calls nnU-Net's own function to
load them. If other code has replaced nnU-Net's function, that replacement stays.
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

# nnU-Net's module has the second name if it is started with `python -m nnunetv2.run.run_training`
CALLERS = ("nnunetv2.run.run_training", "__main__")


def replace_loader(log: Callable[[str], None]) -> None:
    """Make nnU-Net load pretrained weights with `load_pretrained_weights` in this process.

    Args:
        log: Method that logs which weights were resampled. The loader does not keep the method's object alive; once the
            object is gone, the line is printed.
    """
    method = weakref.WeakMethod(log)
    loader = functools.partial(load_pretrained_weights, log=lambda line: (method() or print)(line))
    for name in CALLERS:
        caller = sys.modules.get(name)
        function = getattr(caller, "load_pretrained_weights", None)
        # nnU-Net's function, or an earlier trainer's replacement
        if function is load_fitting_weights or getattr(function, "func", None) is load_pretrained_weights:
            caller.load_pretrained_weights = loader  # type: ignore[union-attr]


def load_pretrained_weights(
    network: nn.Module, fname: str, verbose: bool = False, *, log: Callable[[str], None] = print
) -> None:
    """Load pretrained weights of any patch size; otherwise like nnU-Net's `load_pretrained_weights`.

    Args:
        network: The network, with or without the wrappers of DDP and torch.compile.
        fname: nnU-Net's checkpoint.
        verbose: Whether nnU-Net's function lists all weights.
        log: Function that logs which weights were resampled.

    Raises:
        SystemExit: The file is missing or damaged, could run code, or belongs to another network.
    """
    bare = unwrap(network)
    weights: Mapping[str, Tensor]
    try:
        weights = read_checkpoint(fname, Weights).network_weights
    except UserError as error:
        raise SystemExit(str(error)) from None
    file: str | _NamedBuffer = fname
    if isinstance(bare, MambaMIS) and (gates := gates_to_resample(weights, bare)):
        log(f"Pretrained weights {fname} have another patch size: resampled {_describe(gates)}")
        weights = resample_spectral_gates(weights, bare)
        file = _NamedBuffer(fname)
        torch.save({"network_weights": weights}, file)
        file.seek(0)
    if misfit := _misfit(weights, bare.state_dict()):
        raise SystemExit(f"-pretrained_weights {fname} does not fit this {type(bare).__name__}: {misfit}")
    with without_code():
        load_fitting_weights(network, file, verbose)


def _misfit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return the first difference that makes nnU-Net refuse the weights; nnU-Net never loads segmentation layers."""
    for name, tensor in expected.items():
        if ".seg_layers." in name:
            continue
        if name not in weights:
            return f"it has no {name}"
        if weights[name].shape != tensor.shape:
            return f"its {name} has shape {tuple(weights[name].shape)}, but the network's has {tuple(tensor.shape)}"
    return None


class _NamedBuffer(io.BytesIO):
    """An in-memory file that prints as the path of the file on disk."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def __str__(self) -> str:
        return str(self.path)


def _describe(gates: dict) -> str:
    """Describe the result of `gates_to_resample` in one line."""
    counts = collections.Counter(gates.values())
    sizes = [f"{n} from {old[0]}×{old[1]} to {new[0]}×{new[1]}" for (old, new), n in counts.items()]
    return f"{len(gates)} spectral gates ({', '.join(sizes)})"


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network

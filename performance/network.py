"""Compare Mamba-MIS B and the network of `_conv` with nnU-Net's PlainConvUNet on a CPU: time, memory, growth with size.

PlainConvUNet has the architecture that nnU-Net plans for the same patch.

`network.py NETWORK SIZE BATCH` runs one training step and prints the peak resident bytes.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from measure import describe_cpu, medians, peak_memory, print_table, write_json
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer  # noqa: F401 (users' processes import it too)
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.memory import keep_freed_memory
from nnunet_mamba_mis.ops.selective_scan import registry

NETWORKS = ("MambaMIS B patch", "MambaMIS H conv", "PlainConvUNet")

# (size, batch): repeats
INFERENCE = {(96, 1): 25, (96, 8): 9, (256, 1): 9, (512, 1): 5}
TRAINING = {(96, 4): 9, (128, 2): 9, (128, 4): 9, (128, 8): 5, (256, 2): 5, (512, 2): 3}
PEAKS = ((96, 4), (128, 8), (256, 2), (512, 2))


def plain_conv_unet(size: int) -> nn.Module:
    """Build the network that nnU-Net's default planner writes into a 2D plan for this patch."""
    _, strides, kernels, *_ = get_pool_and_conv_props((1.0, 1.0), (size, size), 4, 999999)
    stages = len(strides)
    return PlainConvUNet(
        3, stages, [min(512, 32 * 2**i) for i in range(stages)], nn.Conv2d, kernels, strides, [2] * stages, 2,
        [2] * (stages - 1), conv_bias=True, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def make(name: str, size: int) -> nn.Module:
    """Build one of the networks, with deep supervision."""
    torch.manual_seed(0)
    if name == "PlainConvUNet":
        return plain_conv_unet(size)
    _, variant, stem = name.split()
    return MambaMIS(3, 2, (size, size), variant=variant, stem=stem, deep_supervision=True)


def infer(network: nn.Module, size: int, batch: int = 1):
    """Return the logits of a batch."""
    network.decoder.deep_supervision = False
    with torch.no_grad():
        return network(torch.zeros(batch, 3, size, size))


def train(network: nn.Module, size: int, batch: int) -> None:
    """Run a forward pass, a loss over all outputs, and a backward pass."""
    network.decoder.deep_supervision = True
    network.zero_grad(set_to_none=True)
    outputs = network(torch.rand(batch, 3, size, size))
    target = [torch.ones(batch, *y.shape[2:], dtype=torch.long) for y in outputs]
    loss = sum(nn.functional.cross_entropy(y, t) / 2**i for i, (y, t) in enumerate(zip(outputs, target, strict=True)))
    loss.backward()


def check() -> None:
    """Exit if a network's results in float32 on native code differ from those in float64 on PyTorch operations."""
    for name in NETWORKS[:-1]:
        _check(name)


def _check(name: str) -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        network = make(name, 64).to(dtype)
        torch.manual_seed(1)
        with on_torch_operations() if dtype == torch.float64 else nullcontext():
            y = network(torch.rand(1, 3, 64, 64).to(dtype))[0]
            results.append([y, *torch.autograd.grad(y.square().mean(), list(network.decoder.stages[-1].parameters()))])
    for a, e in zip(*results, strict=True):
        error = (a - e).abs().max() / e.abs().max().clamp(min=1e-3)
        if error > 1e-3:
            sys.exit(f"{name} is wrong by {error:.1e}: nothing is timed")


@contextmanager
def on_torch_operations():
    """Run networks without native code."""
    scan = patch.object(registry, "fastest_backend", lambda *_: registry.BACKENDS["torch"])
    with patch.object(native, "available", bool), scan:
        yield


def compare(what: str, work, size: int, batch: int, repeats: int) -> dict:
    """Return the median seconds that each network takes for `work`."""
    networks = {name: make(name, size) for name in NETWORKS}
    times = medians({n: partial(work, network, size, batch) for n, network in networks.items()}, repeats)
    print(".", end="", flush=True)
    return {"what": what, "size": size, "batch": batch, **times}


def peaks(size: int, batch: int) -> dict:
    """Return the peak resident bytes of a training step of each network, measured in a process of its own."""
    print(".", end="", flush=True)
    peak = {name: peak_memory(Path(__file__), name, str(size), str(batch)) for name in NETWORKS}
    return {"what": "peak memory", "size": size, "batch": batch, **peak}


def growth() -> dict[int, float]:
    """Return the seconds of inference by size; the sizes take turns."""
    networks = {size: make("MambaMIS B patch", size) for size in (128, 256, 512, 1024)}
    times = medians({str(size): partial(infer, network, size) for size, network in networks.items()}, repeats=3)
    return {int(size): seconds for size, seconds in times.items()}


def row(result: dict) -> list[str]:
    """Return a row of the table: inference per patch, everything else per batch."""
    values = [result[name] for name in NETWORKS]
    what, patch = result["what"], f"{result['size']}² × {result['batch']}"
    if what == "peak memory":
        cells = [f"{value / 2**30:.2f} GiB" for value in values]
    elif what == "inference":
        cells = [f"{value / result['batch'] * 1e3:.1f} ms per patch" for value in values]
    else:
        cells = [f"{value * 1e3:.0f} ms" for value in values]
    *ours, theirs = values
    return [f"{what} {patch}", *cells, *(f"{value / theirs:.2f}×" for value in ours)]


def main() -> None:
    """Print ratios and write them as JSON."""
    check()
    results = [compare("inference", infer, *setup, repeats) for setup, repeats in INFERENCE.items()]
    results += [compare("training step", train, *setup, repeats) for setup, repeats in TRAINING.items()]
    results += [peaks(*setup) for setup in PEAKS]
    title = f"Networks with deep supervision, patch × batch ({describe_cpu()})"
    print_table(
        title, ["", *NETWORKS, *(f"ratio of {name}" for name in NETWORKS[:-1])], [row(result) for result in results]
    )
    seconds = growth()
    per_pixel = {size: t / size**2 for size, t in seconds.items()}
    print_table(
        f"Inference time per pixel ({describe_cpu()})",
        ["size", "time", "against 256²"],
        [[f"{s}²", f"{t * 1e9:.0f} ns", f"{t / per_pixel[256]:.2f}×"] for s, t in per_pixel.items()],
    )
    write_json("network", {"results": results, "inference_seconds": seconds})


if __name__ == "__main__":
    keep_freed_memory()  # as in nnU-Net
    if len(sys.argv) == 4:
        name, size, batch = sys.argv[1], *map(int, sys.argv[2:])
        train(make(name, size), size, batch)
        # not ru_maxrss, which a process inherits from its parent
        print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
    else:
        main()

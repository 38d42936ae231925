"""Mamba-MIS B against PlainConvUNet as nnU-Net plans it for the same patch, on a CPU: time, memory, growth with size.

`network.py NETWORK SIZE train` runs one training step at batch 2 and prints the peak resident bytes.
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
from measure import medians, peak_memory, print_table, write_json
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.ops import available_backends
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.memory import keep_freed_memory
from nnunet_mamba_mis.ops.selective_scan import registry

NETWORKS = ("MambaMIS B", "PlainConvUNet")


def plain_conv_unet(size: int) -> nn.Module:
    """The network that nnU-Net's default planner writes into a 2D plan for this patch."""
    _, strides, kernels, *_ = get_pool_and_conv_props((1.0, 1.0), (size, size), 4, 999999)
    stages = len(strides)
    return PlainConvUNet(
        3, stages, [min(512, 32 * 2**i) for i in range(stages)], nn.Conv2d, kernels, strides, [2] * stages, 2,
        [2] * (stages - 1), conv_bias=True, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def make(name: str, size: int) -> nn.Module:
    """One of the two networks, with deep supervision."""
    torch.manual_seed(0)
    if name == "PlainConvUNet":
        return plain_conv_unet(size)
    return MambaMIS(3, 2, (size, size), deep_supervision=True)


def infer(network: nn.Module, size: int):
    """Logits of one image."""
    network.decoder.deep_supervision = False
    with torch.no_grad():
        return network(torch.zeros(1, 3, size, size))


def train(network: nn.Module, size: int) -> None:
    """Forward, a loss over all outputs, and backward, at batch 2."""
    network.decoder.deep_supervision = True
    network.zero_grad(set_to_none=True)
    outputs = network(torch.rand(2, 3, size, size))
    target = [torch.ones(2, *y.shape[2:], dtype=torch.long) for y in outputs]
    loss = sum(nn.functional.cross_entropy(y, t) / 2**i for i, (y, t) in enumerate(zip(outputs, target, strict=True)))
    loss.backward()


def check() -> None:
    """Stop if the network, as it will be timed, differs from itself in float64 on PyTorch operations."""
    results = []
    for dtype in (torch.float32, torch.float64):
        network = make("MambaMIS B", 64).to(dtype)
        torch.manual_seed(1)
        with on_torch_operations() if dtype == torch.float64 else nullcontext():
            y = network(torch.rand(1, 3, 64, 64).to(dtype))[0]
            results.append([y, *torch.autograd.grad(y.square().mean(), list(network.decoder.stages[-1].parameters()))])
    for a, e in zip(*results, strict=True):
        error = (a - e).abs().max() / e.abs().max().clamp(min=1e-3)
        if error > 1e-3:
            sys.exit(f"the network is wrong by {error:.1e}: nothing is timed")


@contextmanager
def on_torch_operations():
    """Without native code."""
    scan = patch.object(registry, "fastest_backend", lambda *_: registry.BACKENDS["torch"])
    with patch.object(native, "available", bool), scan:
        yield


def compare(size: int) -> list[dict]:
    """Times and peak memory of both networks at one size."""
    networks = {name: make(name, size) for name in NETWORKS}
    results = []
    for what, work in {"inference": infer, "training step": train}.items():
        times = medians({n: partial(work, networks[n], size) for n in networks}, repeats=9)
        results.append({"size": size, "what": what, "unit": "s", **times})
        print(".", end="", flush=True)
    peaks = {n: peak_memory(Path(__file__), n, str(size), "train") / 2**30 for n in networks}
    return [*results, {"size": size, "what": "training step, peak memory", "unit": "GiB", **peaks}]


def growth() -> dict[int, float]:
    """Seconds of inference by size, taken in turns."""
    networks = {size: make("MambaMIS B", size) for size in (128, 256, 512, 1024)}
    times = medians({str(size): partial(infer, network, size) for size, network in networks.items()}, repeats=7)
    return {int(size): seconds for size, seconds in times.items()}


def main() -> None:
    """Print ratios and write them as JSON."""
    check()
    results = [result for size in (256, 512) for result in compare(size)]
    rows = [
        [f"{r['size']}² {r['what']}", *(f"{r[n]:.3f} {r['unit']}" for n in NETWORKS), f"{_ratio(r):.2f}×"]
        for r in results
    ]
    title = f"float32, {torch.get_num_threads()} threads, scan by {available_backends()[0]}; training at batch 2"
    print_table(title, ["", *NETWORKS, "ratio"], rows)
    seconds = growth()
    per_pixel = {size: t / size**2 for size, t in seconds.items()}
    print_table(
        "Inference time a pixel",
        ["size", "time", "against 256²"],
        [[f"{s}²", f"{t * 1e9:.0f} ns", f"{t / per_pixel[256]:.2f}×"] for s, t in per_pixel.items()],
    )
    write_json("network", {"results": results, "inference_seconds": seconds})


def _ratio(result: dict) -> float:
    ours, theirs = (result[name] for name in NETWORKS)
    return ours / theirs


if __name__ == "__main__":
    keep_freed_memory()  # as in nnU-Net
    if len(sys.argv) == 4:
        train(make(sys.argv[1], int(sys.argv[2])), int(sys.argv[2]))
        # not ru_maxrss: a process inherits that from the one that started it
        print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
    else:
        main()

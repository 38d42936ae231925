"""Mamba-MIS B against PlainConvUNet as nnU-Net plans it for the same patch, on a CPU: time, memory, growth with size.

`network.py NETWORK SIZE train` runs one training step at batch 2 and prints the peak resident bytes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from measure import medians, peak_memory, print_table, write_json
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.ops import available_backends


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


def main() -> None:
    """Print ratios and write them as JSON."""
    rows, results = [], []
    for size in (256, 512):
        networks = {name: make(name, size) for name in ("MambaMIS B", "PlainConvUNet")}
        for what, work in {"inference": infer, "training step, batch 2": train}.items():
            times = medians({n: lambda n=n, work=work: work(networks[n], size) for n in networks}, repeats=5)
            ratio = times["MambaMIS B"] / times["PlainConvUNet"]
            rows.append([f"{size}² {what}", *(f"{t:.3f} s" for t in times.values()), f"{ratio:.2f}×"])
            results.append({"size": size, "what": what, "seconds": times})
        peaks = {n: peak_memory(Path(__file__), n, str(size), "train") for n in ("MambaMIS B", "PlainConvUNet")}
        ratio = peaks["MambaMIS B"] / peaks["PlainConvUNet"]
        rows.append(
            [f"{size}² training, peak memory", *(f"{p / 2**30:.2f} GiB" for p in peaks.values()), f"{ratio:.2f}×"]
        )
        results.append({"size": size, "what": "training, peak memory", "bytes": peaks})
    header = ["", "MambaMIS B", "PlainConvUNet", "ratio"]
    print_table(f"float32, {torch.get_num_threads()} threads, scan backend {available_backends()[0]}", header, rows)
    growth = {
        size: medians({"B": lambda size=size: infer(make("MambaMIS B", size), size)}, 3)["B"]
        for size in (128, 256, 512, 1024)
    }
    per_pixel = [
        [f"{s}²", f"{t / s**2 * 1e9:.0f} ns", f"{t / s**2 / (growth[256] / 256**2):.2f}×"] for s, t in growth.items()
    ]
    print_table("Inference time a pixel (with building the network)", ["size", "time", "against 256²"], per_pixel)
    write_json("network", {"results": results, "inference_seconds": growth})


if __name__ == "__main__":
    if len(sys.argv) == 4:
        train(make(sys.argv[1], int(sys.argv[2])), int(sys.argv[2]))
        # not ru_maxrss: a process inherits that from the one that started it
        print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
    else:
        main()

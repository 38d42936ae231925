"""Compare a training step of Mamba-MIS with nnU-Net's U-Nets on a GPU under fp16 autocast: time and memory.

The baselines, patches and batch sizes are nnU-Net's: PlainConvUNet of its default planner, and ResidualEncoderUNet of
its preset M, for 256² and 512². With --eager, nothing is compiled, and patches are 128² and 256².
"""

from __future__ import annotations

import argparse
import gc
import sys
import time

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from measure import Journal, describe_gpu, device_medians, gpu_options, print_table
from network import plain_conv_unet
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS

# (patch, batch); COMPILED has the batch sizes of nnU-Net's default planner for RGB images as large as the patch
COMPILED = ((256, 49), (512, 12))
EAGER = ((128, 8), (256, 12), (256, 49))
TINY = ((32, 2),)


def residual_encoder_unet(size: int) -> nn.Module:
    """Build the network that nnU-Net's preset M writes into a 2D plan for this patch."""
    _, strides, kernels, *_ = get_pool_and_conv_props((1.0, 1.0), (size, size), 4, 999999)
    stages = len(strides)
    blocks = (1, 3, 4, 6, 6, 6, 6, 6, 6)[:stages]
    return ResidualEncoderUNet(
        3, stages, [min(512, 32 * 2**i) for i in range(stages)], nn.Conv2d, kernels, strides, blocks, 2,
        [1] * (stages - 1), conv_bias=True, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def make(name: str, size: int) -> nn.Module:
    """Build a network with deep supervision, as nnU-Net trains it on a GPU."""
    torch.manual_seed(0)
    if name == "PlainConvUNet":
        return plain_conv_unet(size)
    if name == "ResidualEncoderUNet M":
        return residual_encoder_unet(size)
    _, variant, stem = name.split()
    return MambaMIS(3, 2, (size, size), variant=variant, stem=stem, deep_supervision=True)


NETWORKS = (
    "PlainConvUNet",
    "ResidualEncoderUNet M",
    *(f"MambaMIS {variant} patch" for variant in "SBL"),
    "MambaMIS H conv",
)


def training_step(name: str, size: int, batch: int, device: str, compiled: bool):
    """Return a function for one training step with a loss over all outputs; on a GPU under fp16 autocast."""
    network = make(name, size).to(device)
    on_gpu = device == "cuda"
    called = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    scaler = torch.amp.GradScaler(device, enabled=on_gpu)
    image = torch.rand(batch, 3, size, size, device=device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, enabled=on_gpu):
            outputs = called(image)
            target = [torch.ones(batch, *y.shape[2:], dtype=torch.long, device=device) for y in outputs]
            pairs = enumerate(zip(outputs, target, strict=True))
            loss = sum(nn.functional.cross_entropy(y, t) / 2**i for i, (y, t) in pairs)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def measure(name: str, size: int, batch: int, device: str, compiled: bool) -> dict:
    """Return the seconds of the first step, which compiles, the median seconds of later steps, and the peak memory."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    step = training_step(name, size, batch, device, compiled)
    start = time.perf_counter()
    step()
    if device == "cpu":
        return {"first_seconds": time.perf_counter() - start, **device_medians(device, {"seconds": step})}
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(2):
        step()
    torch.cuda.reset_peak_memory_stats()
    seconds = device_medians(device, {"seconds": step})
    return {"first_seconds": first, **seconds, "peak_bytes": torch.cuda.max_memory_allocated()}


def main() -> None:
    """Print ratios and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eager", action="store_true", help="do not use torch.compile")
    options = gpu_options(__doc__, parser)
    compiled = options.device == "cuda" and not options.eager
    if options.device == "cpu" and not options.tiny:
        sys.exit("no usable CUDA device was found: use --tiny to test this benchmark on a CPU")
    journal = Journal("network_gpu_eager" if options.eager else "network_gpu", options)
    rows = []
    for size, batch in TINY if options.tiny else EAGER if options.eager else COMPILED:
        results = {}
        for name in NETWORKS:
            full_name = f"{size}² batch {batch} {name}"
            results[name] = journal.measure(full_name, lambda: measure(name, size, batch, options.device, compiled))
            row = [full_name]
            for key, unit, scale in (("seconds", "ms", 1e3), ("peak_bytes", "GiB", 2**-30)):
                value, reference = (result.get(key) for result in (results[name], results[NETWORKS[0]]))
                row.append(f"{value * scale:.2f} {unit}" if value else "")
                row.append(f"{value / reference:.2f}×" if value and reference else "")
            rows.append(row)
    header = ["", "time", "vs PlainConvUNet", "peak memory", "vs PlainConvUNet"]
    how = f"{'' if compiled else 'not '}compiled, {'fp16 autocast' if options.device == 'cuda' else 'float32'}"
    print_table(f"Training step, {how}, {describe_gpu()}", header, rows)
    journal.finish()


if __name__ == "__main__":
    main()

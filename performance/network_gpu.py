"""A training step of Mamba-MIS S, B and L against nnU-Net's U-Nets on a GPU: compiled, fp16 autocast, peak memory.

Networks, patches and batch sizes are nnU-Net's: PlainConvUNet of its default planner, and ResidualEncoderUNet of its
preset M, for 256² (batch 12 and more, as 8 GB hold) and 512².
"""

from __future__ import annotations

import sys

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from measure import describe_gpu, gpu_medians, print_table, write_json
from network import plain_conv_unet
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS

BATCHES = {256: 49, 512: 12}  # of nnU-Net's default planner for RGB images of this size


def residual_encoder_unet(size: int) -> nn.Module:
    """The network that nnU-Net's preset M writes into a 2D plan for this patch."""
    _, strides, kernels, *_ = get_pool_and_conv_props((1.0, 1.0), (size, size), 4, 999999)
    stages = len(strides)
    blocks = (1, 3, 4, 6, 6, 6, 6, 6, 6)[:stages]
    return ResidualEncoderUNet(
        3, stages, [min(512, 32 * 2**i) for i in range(stages)], nn.Conv2d, kernels, strides, blocks, 2,
        [1] * (stages - 1), conv_bias=True, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def make(name: str, size: int) -> nn.Module:
    """A network with deep supervision, as nnU-Net trains it on a GPU."""
    torch.manual_seed(0)
    if name == "PlainConvUNet":
        return plain_conv_unet(size)
    if name == "ResidualEncoderUNet M":
        return residual_encoder_unet(size)
    return MambaMIS(3, 2, (size, size), variant=name[-1], deep_supervision=True)


NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet M", "MambaMIS S", "MambaMIS B", "MambaMIS L")


def training_step(name: str, size: int, batch: int):
    """Forward, a loss over all outputs, backward and an optimizer's step, under fp16 autocast."""
    network = make(name, size).cuda()
    compiled = torch.compile(network)
    optimizer = torch.optim.AdamW(network.parameters())
    scaler = torch.amp.GradScaler("cuda")
    image = torch.rand(batch, 3, size, size, device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            outputs = compiled(image)
            target = [torch.ones(batch, *y.shape[2:], dtype=torch.long, device="cuda") for y in outputs]
            pairs = enumerate(zip(outputs, target, strict=True))
            loss = sum(nn.functional.cross_entropy(y, t) / 2**i for i, (y, t) in pairs)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def main() -> None:
    """Print ratios and write them as JSON."""
    if not torch.cuda.is_available():
        sys.exit("there is no usable CUDA device: nothing is timed")
    results = []
    for size, batch in BATCHES.items():
        for name in NETWORKS:
            torch.cuda.empty_cache()
            step = training_step(name, size, batch)
            for _ in range(3):
                step()
            torch.cuda.reset_peak_memory_stats()
            seconds = gpu_medians({name: step})[name]
            peak = torch.cuda.max_memory_allocated()
            results.append({"network": name, "size": size, "batch": batch, "seconds": seconds, "peak_bytes": peak})
            del step
            torch._dynamo.reset()
            print(".", end="", flush=True)
    rows = []
    for result in results:
        first = next(r for r in results if r["size"] == result["size"])
        ratios = [f"{result[key] / first[key]:.2f}×" for key in ("seconds", "peak_bytes")]
        cells = [f"{result['seconds'] * 1e3:.1f} ms", ratios[0], f"{result['peak_bytes'] / 2**30:.2f} GiB", ratios[1]]
        rows.append([f"{result['size']}² batch {result['batch']} {result['network']}", *cells])
    header = ["", "time", "of PlainConvUNet", "peak memory", "of PlainConvUNet"]
    print_table(f"Training step, compiled, fp16 autocast, {describe_gpu()}", header, rows)
    write_json("network_gpu", {"gpu": describe_gpu(), "results": results})


if __name__ == "__main__":
    main()

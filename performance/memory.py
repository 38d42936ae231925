"""Compare the memory model of `mamba_mis plan` with the peak of training steps, on a GPU if available, else a CPU."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from measure import Journal, gpu_options, peak_memory, print_table
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from nnunet_mamba_mis.architectures import MambaMIS, deep_supervision_sizes
from nnunet_mamba_mis.ops.memory import keep_freed_memory
from nnunet_mamba_mis.planning.memory import training_bytes

CHANNELS, CLASSES = 3, 2


SETUPS = {
    "cpu": [
        *(("patch", variant, side, batch) for variant in "SBL" for side, batch in ((128, 8), (256, 4))),
        *(("conv", "H", side, batch) for side, batch in ((128, 8), (256, 4))),
    ],
    "cuda": [
        *(("patch", "S", 256, 12), ("patch", "B", 256, 12), ("patch", "B", 512, 4)),
        *(("patch", "L", 256, 12), ("patch", "L", 512, 4), ("conv", "H", 256, 12), ("conv", "H", 512, 4)),
    ],
}


TINY = [("patch", "S", 32, 2)]


def main() -> None:
    """Print measured and modelled peaks, and write them as JSON; with arguments, measure one setup."""
    parser = argparse.ArgumentParser(description=__doc__)
    setup_help = "DEVICE STEM VARIANT HEIGHT WIDTH BATCH: only print the peak bytes that training this setup adds"
    parser.add_argument("setup", nargs="*", help=setup_help)
    options = gpu_options(__doc__, parser)
    if options.setup:
        measure(*options.setup)
        return
    device = options.device
    journal = Journal(f"memory_{device}", options)
    rows = []
    for stem, variant, side, batch in TINY if options.tiny else SETUPS[device]:
        name = f"{variant}{' conv' if stem == 'conv' else ''} {side}² batch {batch}"
        setup = (device, stem, variant, str(side), str(side), str(batch))

        def compare():
            model = training_bytes(device, variant, (side, side), batch, stem=stem)
            return {"peak": peak_memory(Path(__file__), *setup), "model": model}

        result = journal.measure(name, compare)
        if "error" not in result:
            peak, model = result["peak"], result["model"]
            rows.append([name, f"{peak / 1e9:.2f}", f"{model / 1e9:.2f}", f"{model / peak:.2f}×"])
    print_table(f"Peak memory of a training step in GB, on device {device}", ["", "measured", "model", "ratio"], rows)
    journal.finish()


def measure(device: str, stem: str, variant: str, height: str, width: str, batch: str) -> None:
    """Print the peak bytes of training."""
    keep_freed_memory()  # as this package's trainers do
    peak = _peak_on_cuda if device == "cuda" else _peak_on_cpu
    print(int(peak(stem, variant, (int(height), int(width)), int(batch))))


def _peak_on_cpu(stem: str, variant: str, size: tuple[int, int], batch: int) -> int:
    _train("cpu", stem, "S", (32, 32), 1)  # lets libraries make their one-time allocations
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    _train("cpu", stem, variant, size, batch)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def _peak_on_cuda(stem: str, variant: str, size: tuple[int, int], batch: int) -> int:
    _train("cuda", stem, variant, size, batch)
    return torch.cuda.max_memory_allocated()


def _train(device: str, stem: str, variant: str, size: tuple[int, int], batch: int) -> None:
    """Run two training steps as nnU-Net does; AdamW's moments exist from the second on."""
    network = MambaMIS(CHANNELS, CLASSES, size, variant=variant, stem=stem, deep_supervision=True).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    weights = np.array([16, 8, 4, 2, 0]) / 30
    loss = DeepSupervisionWrapper(DC_and_CE_loss(dice, {}), weights)
    for _ in range(2):
        image = torch.rand(batch, CHANNELS, *size, device=device)
        targets = [torch.randint(CLASSES, (batch, 1, *s), device=device).float() for s in deep_supervision_sizes(size)]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, enabled=device == "cuda"):
            value = loss(network(image), targets)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()


if __name__ == "__main__":
    main()

"""Profile a training step of an nnU-Net trainer on preprocessed data, as `nnUNetv2_train` runs it.

The script writes into OUT: NAME.json (seconds and memory), NAME.txt (tables of operators, the allocator's summary) and
NAME.trace.json.gz (for https://ui.perfetto.dev or chrome://tracing). nnU-Net's environment variables set the folders of
data, and whether networks are compiled.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.profiler import ProfilerActivity, profile, record_function

ROWS = 60


def main() -> None:
    """Run the steps and write the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainer")
    parser.add_argument("dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", help="name of the files (default: name of the trainer)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--mode", help="mode of torch.compile, if networks are compiled")
    parser.add_argument("--steps", type=int, default=20, help="number of timed steps (default: %(default)s)")
    args = parser.parse_args()
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True  # as in nnUNetv2_train
    if args.mode:
        torch.compile = functools.partial(torch.compile, mode=args.mode)
    trainer = get_trainer_from_args(args.dataset, "2d", 0, args.trainer, device=torch.device(args.device))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    measured, profiler = measure(trainer, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / (args.name or args.trainer), measured, profiler)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        getattr(loader, "_finish", int)()  # end the loader's processes


def measure(trainer: nnUNetTrainer, steps: int) -> tuple[dict, profile]:
    """Return seconds of the first and of later steps (with and without loading data), peak memory, and one profile."""
    batch = next(trainer.dataloader_train)

    def step() -> None:
        trainer.train_step(batch)  # returns the loss as a number, and so waits for the device

    def step_with_data() -> None:
        trainer.train_step(next(trainer.dataloader_train))

    first = seconds(step)
    for _ in range(min(3, steps)):
        step()
    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    measured = {
        "trainer": type(trainer).__name__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "compiled": trainer._do_i_compile(),
        "batch": list(batch["data"].shape),
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "first_step_seconds": first,
        "step_seconds": statistics.median(seconds(step) for _ in range(steps)),
        "step_with_data_seconds": seconds(lambda: [step_with_data() for _ in range(steps)]) / steps,
    }
    if on_gpu:
        measured["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        measured["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler, record_function("step"):
        step()
    return measured, profiler


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write(path: Path, measured: dict, profiler: profile) -> None:
    """Write the three files, JSON last."""
    averages = profiler.key_averages(group_by_input_shape=False)
    orders = ["self_cpu_time_total", "self_cpu_memory_usage"]
    if measured["device"] != "cpu":
        orders = ["self_device_time_total", "self_device_memory_usage", *orders]
    tables = [f"By {order}\n{averages.table(sort_by=order, row_limit=ROWS)}" for order in orders]
    if measured["device"] != "cpu":
        tables.append(torch.cuda.memory_summary())
    path.with_name(f"{path.name}.txt").write_text("\n\n".join(tables) + "\n")
    profiler.export_chrome_trace(str(path.with_name(f"{path.name}.trace.json.gz")))
    text = json.dumps(measured, indent=2)
    path.with_name(f"{path.name}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""Time an epoch of `nnUNetv2_train` on a CPU: loading data, steps, validation.

The script draws a small dataset, converts, plans and preprocesses it with the usual commands. It then runs the trainers
of nnU-Net's own 2D U-Net, of Mamba-MIS B and of `_conv`, each in its own process: with `nnUNet_n_proc_DA=0`, where the
training process augments, and with nnU-Net's default, where other processes do. It measures fewer iterations than an
epoch has, and scales the result up.

`epoch.py measure TRAINER` runs one trainer and prints the seconds of each part as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import describe_cpu, last_line, print_table, write_json

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.demo.synthetic_polyps import write_synthetic_set
from nnunet_mamba_mis.nnunet.paths import FOLDERS
from nnunet_mamba_mis.utils.subprocesses import find_executable

DATASET, IMAGES, BATCH = 900, 24, 4
TRAINERS = ("nnUNetTrainerMambaMIS", "nnUNetTrainerMambaMIS_conv", "nnUNetTrainer")
LOADERS = {"n_proc_DA 0": "0", "n_proc_DA default": None}
PARTS = ("data", "step", "validation")
WHOLE, MEASURED = (250, 50), (15, 3)  # iterations of training and validation


def prepare(folder: Path) -> None:
    """Create a preprocessed dataset in `folder`, and set nnU-Net's environment variables."""
    os.environ |= {name: str(folder / name) for name in FOLDERS}
    for name in FOLDERS:
        (folder / name).mkdir()
    write_synthetic_set(folder / "source", IMAGES)
    convert_dataset(DATASETS["kvasir-seg"], [folder / "source"], DATASET, processes=1)
    command = [find_executable("nnUNetv2_plan_and_preprocess"), *f"-d {DATASET} -c 2d -npfp 2 -np 2".split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    (plans,) = preprocessed().glob("nnUNetPlans.json")
    values = json.loads(plans.read_text())
    values["configurations"]["2d"]["batch_size"] = BATCH
    plans.write_text(json.dumps(values))


def preprocessed() -> Path:
    """Return the folder of the preprocessed dataset."""
    (folder,) = Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{DATASET}_*")
    return folder


def measure(name: str) -> dict[str, float]:
    """Return the seconds of a trainer's epoch by part, after a short epoch as warm-up."""
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_mamba_mis import trainers

    torch.set_num_threads(os.cpu_count() or 1)  # as nnUNetv2_train does
    plans = json.loads((preprocessed() / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    description = json.loads((preprocessed() / "dataset.json").read_text())
    kind: Any = nnUNetTrainer if name == "nnUNetTrainer" else getattr(trainers, name)
    trainer = kind(plans, "2d", 0, description, torch.device("cpu"))
    trainer.num_epochs = 2
    seconds: Counter[str] = Counter()

    def timed(part: str, function: Callable) -> Callable:
        @wraps(function)
        def call(*arguments):
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                seconds[part] += time.perf_counter() - start

        return call

    start_epoch, end_epoch = trainer.on_epoch_start, trainer.on_epoch_end

    def on_epoch_start() -> None:
        iterations = MEASURED if trainer.current_epoch else (2, 1)
        trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = iterations
        seconds.clear()
        seconds["epoch"] = -time.perf_counter()
        start_epoch()

    def on_epoch_end() -> None:
        end_epoch()
        seconds["epoch"] += time.perf_counter()

    trainer.on_epoch_start, trainer.on_epoch_end = on_epoch_start, on_epoch_end
    trainer.train_step = timed("step", trainer.train_step)
    trainer.validation_step = timed("validation", trainer.validation_step)
    loaders = (SingleThreadedAugmenter, NonDetMultiThreadedAugmenter)
    first, second = (patch.object(loader, "__next__", timed("data", loader.__next__)) for loader in loaders)
    with first, second:
        trainer.run_training()
    return seconds


def whole_epoch(measured: dict[str, float]) -> dict[str, float]:
    """Scale measured seconds to an epoch of nnU-Net's length; work that happens once per epoch is not scaled."""
    parts = {part: WHOLE[0] / MEASURED[0] * measured[part] for part in PARTS}
    once = measured["epoch"] - sum(measured[part] for part in PARTS)
    return parts | {"once": once, "epoch": sum(parts.values()) + once}


def main() -> None:
    """Print a table of the epochs and write them as JSON."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        plan = json.loads((preprocessed() / "nnUNetPlans.json").read_text())["configurations"]["2d"]
        for loader, processes in LOADERS.items():
            for trainer in TRAINERS:
                environment = {"nnUNet_n_proc_DA": processes}
                measured = json.loads(last_line(Path(__file__), "measure", trainer, environment=environment))
                results.append({"trainer": trainer, "loader": loader, "seconds": whole_epoch(measured)})
                print(".", end="", flush=True)
    rows = []
    for result in results:
        seconds = result["seconds"]
        cells = [f"{seconds[part]:.1f} s" for part in (*PARTS, "once", "epoch")]
        rows.append([f"{result['trainer']}, {result['loader']}", *cells, f"{seconds['data'] / seconds['epoch']:.0%}"])
    height, width = plan["patch_size"]
    print_table(
        f"An epoch of {WHOLE[0]} + {WHOLE[1]} iterations, scaled up from {MEASURED[0]} + {MEASURED[1]}:"
        f"\n  patch {height} × {width}, batch {BATCH} ({describe_cpu()})",
        ["", "data", "step", "validation", "once", "epoch", "share of data"],
        rows,
    )
    write_json("epoch", {"patch": plan["patch_size"], "batch": BATCH, "results": results})


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()

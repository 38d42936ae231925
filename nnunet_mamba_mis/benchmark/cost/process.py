"""Measure the cost of a model for `measure_cost`, and print it as JSON in the last line of output.

Arguments: DATASET TRAINER PLANS CONFIGURATION DEVICE.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_mamba_mis.benchmark.cost.flops import count_flops

REPEATS = 5


def measure(dataset: str, trainer_name: str, plans: str, configuration: str, device: str) -> dict[str, Any]:
    """Return the cost of a model, as described in `measure_cost`."""
    before = _resident("VmRSS")
    trainer = get_trainer_from_args(dataset, configuration, 0, trainer_name, plans, device=torch.device(device))
    trainer.initialize()
    cost: dict[str, Any] = {"hardware": _hardware(trainer.device), "batch_size": trainer.batch_size}
    peak = _peak_of_training(trainer)
    if peak is not None:
        cost["training_bytes"] = peak - (0 if device == "cuda" else before or 0)
    return cost | _inference(trainer) | network_cost(trainer)


def network_cost(trainer: nnUNetTrainer) -> dict[str, Any]:
    """Return the numbers of parameters and operations of the prediction network, and the shape of its input patch."""
    shape = (trainer.num_input_channels, *trainer.configuration_manager.patch_size)

    def build():
        return trainer.build_network_architecture(
            trainer.plans_manager,
            trainer.configuration_manager,
            trainer.num_input_channels,
            trainer.label_manager.num_segmentation_heads,
            False,
        )

    parameters = sum(parameter.numel() for parameter in build().parameters())
    return {"parameters": parameters, "flops": count_flops(build, (1, *shape)), "flops_input": list(shape)}


def _peak_of_training(trainer: nnUNetTrainer) -> int | None:
    """Return the peak bytes of the second step, when the optimiser has its state and compilation is finished."""
    batch = _random_batch(trainer)
    trainer.train_step(batch)
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer.train_step(batch)
        return torch.cuda.max_memory_allocated()
    if platform.system() == "Linux":
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    trainer.train_step(batch)
    return _resident("VmHWM")


def _random_batch(trainer: nnUNetTrainer) -> dict[str, Any]:
    labels = trainer.label_manager
    # regions may overlap, so each has a channel, as do the ignored pixels
    channels = labels.num_segmentation_heads + labels.has_ignore_label if labels.has_regions else 1
    size = trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales() or [[1] * len(size)]
    target = [
        torch.randint(
            2, (trainer.batch_size, channels, *(round(s * f) for s, f in zip(size, scale, strict=True)))
        ).short()
        for scale in scales
    ]
    data = torch.rand(trainer.batch_size, trainer.num_input_channels, *size)
    return {"data": data, "target": target if trainer.enable_deep_supervision else target[0]}


def _inference(trainer: nnUNetTrainer) -> dict[str, Any]:
    """Time the prediction of an image of the dataset's median size, as in nnU-Net's final validation."""
    *_, mirroring = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=trainer.device, perform_everything_on_device=True, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json,
        trainer.__class__.__name__, mirroring,
    )  # fmt: skip
    size = [round(side) for side in trainer.configuration_manager.configuration["median_image_size_in_voxels"]]
    # nnU-Net treats a 2D image as a volume with one slice
    image = torch.rand(trainer.num_input_channels, *[1] * (3 - len(size)), *size)
    times = [_seconds(predictor, image) for _ in range(REPEATS + 1)][1:]
    shape = [trainer.num_input_channels, *size]
    return {"inference_seconds": statistics.median(times), "image_shape": shape}


def _seconds(predictor: nnUNetPredictor, image: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        predictor.predict_sliding_window_return_logits(image).cpu()
    return time.perf_counter() - start


def _resident(name: str) -> int | None:
    status = Path("/proc/self/status")
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1]) if status.exists() else None  # type: ignore[index]


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", described.read_text()) if described.exists() else None
    threads = torch.get_num_threads()
    return f"{name[1] if name else platform.machine()}, {threads} thread{'s' * (threads > 1)}"


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))

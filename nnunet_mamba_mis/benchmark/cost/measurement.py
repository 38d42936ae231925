"""Measure the cost of a model: parameters, operations, training memory and prediction time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.utils.errors import UserError

# key of `measure_cost` → column title in reports (lines after the first are small), and the size of the column's unit
_KINDS = {
    "parameters": ("parameters, millions", 1e6),
    "flops": ("FLOPs per patch, billions", 1e9),
    "training_bytes": ("peak training memory, GB\non {hardware}", 1e9),
    "inference_seconds": ("seconds to predict an image\non {hardware}", 1),
}


def measure_cost(dataset: str | int, model: Model, device: str = "cpu") -> dict[str, Any]:
    """Measure the cost of a model in a separate process, training and predicting as nnU-Net does.

    Nothing is written to nnUNet_results. Weights are random, as memory and time do not depend on them.

    Args:
        dataset: Id or name of a dataset that is preprocessed for the plans.
        model: Trainer, plans and configuration.
        device: "cpu" or "cuda".

    Returns:
        A dictionary with these keys:
        parameters: Number of parameters.
        flops: Operations of a forward pass of one patch, whose shape (channels, *patch) is flops_input.
        training_bytes: Peak memory of a training step with batch_size patches: on a GPU, of all tensors; on a CPU, of
            the process, minus its memory before the model was built. Missing if the system does not report it.
        inference_seconds: Time for one image of the dataset's median size, whose shape (channels, *size) is
            image_shape, with nnU-Net's sliding window and mirroring.
        hardware: Name of the GPU or CPU.

    Raises:
        UserError: The model cannot be built, trained or run on this machine.
    """
    arguments = [str(dataset), *model, device]
    with tempfile.TemporaryDirectory() as results:
        run = subprocess.run(
            [sys.executable, "-m", "nnunet_mamba_mis.benchmark.cost.process", *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"nnUNet_results": results},
        )
    if run.returncode:
        last = (run.stderr.strip() or run.stdout.strip() or f"exit status {run.returncode}").splitlines()[-1]
        raise UserError(f"cannot measure the cost of {model} on dataset {dataset} on {device}: {last}")
    return json.loads(run.stdout.splitlines()[-1])


def dataset_costs(dataset: str | int, models: Iterable[Model], device: str = "cpu") -> dict[str, dict[Model, float]]:
    """Return the costs of models for reports: column title → model → number.

    Arguments and errors are those of `measure_cost`.
    """
    costs: dict[str, dict[Model, float]] = {}
    for model in models:
        measured = measure_cost(dataset, model, device)
        for key, (words, unit) in _KINDS.items():
            if key in measured:
                costs.setdefault(words.format_map(measured), {})[model] = measured[key] / unit
    return costs

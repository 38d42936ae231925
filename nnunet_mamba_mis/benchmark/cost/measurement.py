"""What a trained network costs: parameters, operations, memory of training, time of prediction."""

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

# what `measure_cost` returns and reports show → in words (a second line is small), and the unit's size
_KINDS = {
    "parameters": ("parameters, millions", 1e6),
    "flops": ("FLOPs of a patch, billions", 1e9),
    "training_bytes": ("peak memory of training, GB\non {hardware}", 1e9),
    "inference_seconds": ("seconds to predict an image\non {hardware}", 1),
}


def measure_cost(dataset: str | int, model: Model, device: str = "cpu") -> dict[str, Any]:
    """Cost of a model, measured in a process of its own as nnU-Net would train and predict with it.

    Nothing is written to nnUNet_results. Weights are random: neither memory nor time depend on them.

    Args:
        dataset: Id or name of a dataset that is preprocessed for the plans.
        model: Trainer, plans and configuration.
        device: "cpu" or "cuda".

    Returns:
        parameters; flops, of a forward pass of one patch, with flops_input its shape (channels, *patch);
        training_bytes, the peak of a training step with batch_size patches, over what the process had before (left out
        where the system does not tell); inference_seconds, of one image of image_shape (channels, *size), the
        dataset's median, with nnU-Net's sliding window and mirroring; hardware.

    Raises:
        UserError: The model cannot be made, trained or run here.
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
        raise UserError(f"the cost of {model} on dataset {dataset} could not be measured on {device}: {last}")
    return json.loads(run.stdout.splitlines()[-1])


def dataset_costs(dataset: str | int, models: Iterable[Model], device: str = "cpu") -> dict[str, dict[Model, float]]:
    """Costs of models in words, as reports take them: kind of cost → model → number.

    Args and errors as `measure_cost`.
    """
    costs: dict[str, dict[Model, float]] = {}
    for model in models:
        measured = measure_cost(dataset, model, device)
        for key, (words, unit) in _KINDS.items():
            if key in measured:
                costs.setdefault(words.format_map(measured), {})[model] = measured[key] / unit
    return costs

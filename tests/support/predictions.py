"""Untrained models of every kind, and nnU-Net's predictor to compare with."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mamba_mis.nnunet.lookup import find_trainer
from support.model_folders import UntrainedModel

S = "nnUNetTrainerMambaMIS_S"
STOCK = "nnUNetTrainer"
MODELS = {
    "classes": UntrainedModel(S, labels={"background": 0, "polyp": 1, "vessel": 2}),
    "folds": UntrainedModel(S, folds=(0, 1)),
    "regions": UntrainedModel(
        STOCK, labels={"background": 0, "whole": [1, 2], "core": 2}, dataset={"regions_class_order": [1, 2]}
    ),
    "grey": UntrainedModel(STOCK, channels=1, file_ending=".tif"),
    "stock": UntrainedModel(STOCK),
}


def nnunet_predictor(folder: Path, folds: Sequence[int | str], mirroring: bool = True) -> nnUNetPredictor:
    """Return nnU-Net's predictor as its command builds it on a CPU, without the ten seconds of trainer search."""
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    manager = PlansManager(plans)
    checkpoints = [torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False) for fold in folds]
    trainer = find_trainer(checkpoints[0]["trainer_name"])
    configuration = manager.get_configuration("2d")
    channels, heads = len(dataset["channel_names"]), manager.get_label_manager(dataset).num_segmentation_heads
    network = trainer.build_network_architecture(manager, configuration, channels, heads, enable_deep_supervision=False)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    weights = [checkpoint["network_weights"] for checkpoint in checkpoints]
    axes = checkpoints[0]["inference_allowed_mirroring_axes"]
    predictor.manual_initialization(network, manager, configuration, weights, dataset, "", axes)
    return predictor


def assert_same(labels: Any, chances: Any, their_labels: Any, their_chances: Any) -> None:
    """Assert that probabilities agree within 1e-4, and that labels agree wherever such a difference cannot change them.

    A few pixels may differ more: batching may change the last bit of a logit, and nnU-Net, which sums tiles in half
    precision, may then round the sum to the next number.
    """
    assert labels.shape == their_labels.shape and labels.dtype == their_labels.dtype
    differences = np.abs(chances - their_chances)
    assert (differences > 1e-4).sum() <= max(4, 2e-3 * differences.size) and differences.max() < 3e-4
    if np.allclose(their_chances.sum(axis=0), 1, atol=1e-3):
        ordered = np.sort(their_chances, axis=0)
        lead = ordered[-1] - ordered[-2]
    else:
        lead = np.abs(their_chances - 0.5).min(axis=0)
    differ = labels != their_labels
    assert differ.mean() <= 1e-4 and not (differ & (lead > 1e-4)).any()

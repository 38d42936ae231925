"""Trainers made in the process of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

# nnU-Net compares each weight of a checkpoint with all of the network's
FEW_WEIGHTS = {"variant": "S", "block": "cnn", "attention_bridge": False, "fusion_bridge": False}


def make_trainer(trainer: type, preprocessed: Path, continued: bool = False, **configuration: object) -> Any:
    """A trainer as nnU-Net's command makes it on a CPU, with some entries of the plans' 2D configuration replaced."""
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": continued}
    plans["configurations"]["2d"] |= configuration
    description = json.loads((preprocessed / "dataset.json").read_text())
    return trainer(plans, "2d", 0, description, torch.device("cpu"))

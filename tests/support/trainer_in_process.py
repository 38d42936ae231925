"""Create trainers in the process of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

# a small network, as nnU-Net compares each weight of a checkpoint with all weights of the network
FEW_WEIGHTS = {"variant": "S", "block": "cnn", "attention_bridge": False, "fusion_bridge": False}


def make_trainer(trainer: type, preprocessed: Path, continued: bool = False, **configuration: object) -> Any:
    """Return a trainer as nnU-Net's command creates it on a CPU; `configuration` overrides entries of the 2D plans."""
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": continued}
    plans["configurations"]["2d"] |= configuration
    description = json.loads((preprocessed / "dataset.json").read_text())
    return trainer(plans, "2d", 0, description, torch.device("cpu"))

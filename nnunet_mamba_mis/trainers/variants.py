"""Variants of the trainer, each a line that says what it changes."""

from __future__ import annotations

from typing import Any

from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS

# name after nnUNetTrainerMambaMIS → class attributes that differ
VARIANTS: dict[str, dict[str, Any]] = {
    "_S": {"architecture": {"variant": "S"}},
    "_L": {"architecture": {"variant": "L"}},
    "_1epoch": {"epochs": 1},
    **{f"_{epochs}epochs": {"epochs": epochs} for epochs in (5, 10, 20, 50, 100, 250, 500)},
    # the paper's ablations
    "_ss2d": {"architecture": {"scan": "ss2d"}},
    "_noSG": {"architecture": {"spectral_gate": False}},
    "_attentionOnly": {"architecture": {"fusion_bridge": False}},
    "_fusionOnly": {"architecture": {"attention_bridge": False}},
    "_noBridge": {"architecture": {"attention_bridge": False, "fusion_bridge": False}},
    "_cnn": {"architecture": {"block": "cnn"}},
    "_vit": {"architecture": {"block": "vit"}},
    "_mambaDiscretization": {"architecture": {"discretization": "mamba"}},
    # the control without state spaces, at the same parameters and cost
    "_noSSM": {"architecture": {"block": "nossm"}},
    # short epochs for `mamba_mis demo`, minutes on a laptop
    "_demo": {"epochs": 10, "iterations_per_epoch": 50, "validation_iterations_per_epoch": 5},
}


def _make(suffix: str, attributes: dict[str, Any]) -> type[nnUNetTrainerMambaMIS]:
    changes = ", ".join(f"{name} {value}" for name, value in attributes.items())
    body = {"__module__": __name__, "__doc__": f"nnUNetTrainerMambaMIS with {changes}.", **attributes}
    return type(f"nnUNetTrainerMambaMIS{suffix}", (nnUNetTrainerMambaMIS,), body)


VARIANT_TRAINERS = {trainer.__name__: trainer for trainer in (_make(*item) for item in VARIANTS.items())}
globals().update(VARIANT_TRAINERS)  # the classes say that they live here

"""Variants of the trainer, each a line that says what it changes."""

from __future__ import annotations

from typing import Any

from nnunet_mamba_mis.trainers.nnUNetTrainerAdamW1e3 import nnUNetTrainerAdamW1e3
from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.trainers.robust import RobustTrainer
from nnunet_mamba_mis.trainers.umamba import nnUNetTrainerUMambaBot, nnUNetTrainerUMambaEnc

EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500)
LENGTHS = {f"_{epochs}epoch{'s' if epochs > 1 else ''}": {"epochs": epochs} for epochs in EPOCHS}

# name after nnUNetTrainerMambaMIS → class attributes that differ
VARIANTS: dict[str, dict[str, Any]] = {
    "_S": {"architecture": {"variant": "S"}},
    "_L": {"architecture": {"variant": "L"}},
    **LENGTHS,
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


def _make(base: type[RobustTrainer], suffix: str, attributes: dict[str, Any]) -> type[RobustTrainer]:
    changes = ", ".join(f"{name} {value}" for name, value in attributes.items())
    body = {"__module__": __name__, "__doc__": f"{base.__name__} with {changes}.", **attributes}
    return type(f"{base.__name__}{suffix}", (base,), body)


def _by_name(*trainers: type[RobustTrainer]) -> dict[str, type[RobustTrainer]]:
    return {trainer.__name__: trainer for trainer in trainers}


CONTROLS = _by_name(nnUNetTrainerAdamW1e3, nnUNetTrainerUMambaBot, nnUNetTrainerUMambaEnc)
VARIANT_TRAINERS = _by_name(*(_make(nnUNetTrainerMambaMIS, *variant) for variant in VARIANTS.items()))
# comparisons are between trainings of one length: whatever is compared has them all, as nnU-Net's own trainer has
COMPARED = [trainer for trainer in VARIANT_TRAINERS.values() if "architecture" in vars(trainer)] + [*CONTROLS.values()]
VARIANT_TRAINERS |= _by_name(*(_make(trainer, *length) for trainer in COMPARED for length in LENGTHS.items()))
globals().update(VARIANT_TRAINERS)  # the classes say that they live here

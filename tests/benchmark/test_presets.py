"""Presets define fair comparisons of existing trainers."""

from __future__ import annotations

import pytest
from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners as resenc
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs as stock

from nnunet_mamba_mis import trainers
from nnunet_mamba_mis.benchmark.running.presets import EPOCHS, PRESETS, get_preset
from nnunet_mamba_mis.utils.errors import UserError


def find(name: str) -> type:
    return nnUNetTrainer if name == "nnUNetTrainer" else getattr(trainers, name, None) or getattr(stock, name)


@pytest.mark.feature("Controls", "trainers of presets exist in every length")
@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("name", PRESETS)
def test_trainers_of_a_preset_exist_in_every_length(name, epochs):
    for trainer in get_preset(name, epochs).trainers:
        trainer_class = find(trainer)
        # nnU-Net's own trainers set the length in their constructor
        assert getattr(trainer_class, "epochs", epochs) == epochs and trainer_class.__name__ == trainer
        assert find(trainer.removesuffix(f"_{epochs}epoch" + "s" * (epochs > 1))) in trainer_class.__mro__


@pytest.mark.parametrize("size", ["M", "L"])
def test_residual_encoder_presets_use_their_planners_plans(size):
    preset = PRESETS[f"resenc-{size.lower()}"]
    planner = getattr(resenc, preset.planner)
    assert planner.__init__.__defaults__[2] == preset.plans


@pytest.mark.parametrize("arguments", [("best",), ("baseline", 7)], ids=["name", "length"])
def test_unknown_presets_and_lengths_list_the_known_ones(arguments):
    with pytest.raises(UserError, match=r"baseline, resenc-m|1, 5, 10"):
        get_preset(*arguments)

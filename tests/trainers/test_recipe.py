"""Attributes of a trainer that change the steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS, nnUNetTrainerUMambaBot
from nnunet_mamba_mis.trainers.adamw import parameter_groups
from support.trainer_in_process import FEW_WEIGHTS, make_trainer


class Brief(nnUNetTrainerMambaMIS, nnUNetTrainerNoDA):
    """Train two epochs of four steps; record learning rate and gradient norm of each step."""

    architecture: ClassVar = FEW_WEIGHTS
    epochs, iterations_per_epoch, validation_iterations_per_epoch = 2, 4, 1

    def initialize(self):
        super().initialize()
        self.logger.plot_progress_png = lambda folder: None
        self.rates: list[float] = []
        self.norms: list[float] = []

    def train_step(self, batch):
        output = super().train_step(batch)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        gradients = [parameter.grad.norm() for parameter in self.network.parameters() if parameter.grad is not None]
        self.norms.append(torch.stack(gradients).norm().item())
        return output


def trained(preprocessed: Path, **attributes: object) -> Any:
    trainer = make_trainer(type("Brief", (Brief,), attributes), preprocessed)
    trainer.run_training()
    return trainer


@pytest.mark.feature("Recipe", "`warmup_epochs`, `schedule`")
def test_each_step_of_the_warm_up_has_its_own_rate(in_this_process):
    trainer = trained(in_this_process, warmup_epochs=1, schedule="cosine", initial_lr=0.004)
    assert trainer.rates == pytest.approx([0.001, 0.002, 0.003, 0.004] + [0.004] * 4)


@pytest.mark.feature("Recipe", "`warmup_epochs`, `schedule`")
def test_trainer_with_nnunets_optimizer_uses_the_recipes_schedule(in_this_process):
    cosine = type("Cosine", (nnUNetTrainerUMambaBot,), {"schedule": "cosine", "epochs": 2})
    trainer = make_trainer(cosine, in_this_process)
    trainer.initialize()
    trainer.lr_scheduler.step(1)
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


@pytest.mark.feature("Recipe", "`clip_norm`, `oversample_foreground_percent`")
def test_gradients_are_clipped_at_the_recipes_norm(in_this_process):
    norms = trained(in_this_process, clip_norm=0.01).norms
    assert norms == pytest.approx([0.01] * 8, rel=1e-3)


@pytest.mark.feature("Recipe", "`clip_norm`, `oversample_foreground_percent`")
@pytest.mark.parametrize(("attributes", "expected"), [({}, 0.33), ({"oversample_foreground_percent": 0.75}, 0.75)])
def test_the_recipe_sets_the_fraction_of_patches_with_foreground(in_this_process, attributes, expected):
    trainer = trained(in_this_process, epochs=1, iterations_per_epoch=1, **attributes)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        assert loader.data_loader.oversample_foreground_percent == expected


@pytest.mark.parametrize("kwargs", [{}, {"variant": "H", "stem": "conv"}], ids=["B", "H"])
def test_only_matrices_and_kernels_decay(kwargs):
    network = MambaMIS(3, 2, (32, 32), **kwargs)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, exempt = (
        {names[id(p)] for p in group["params"]} for group in parameter_groups(network, weight_decay=0.01)
    )
    assert len(decayed) + len(exempt) == len(names)
    assert [name for name in decayed if network.get_parameter(name).dim() < 2] == []
    one_per_channel = {name for name in names.values() if network.get_parameter(name).dim() < 2}
    assert {name.rpartition(".")[2] for name in exempt - one_per_channel} == {"A_log", "bias"}

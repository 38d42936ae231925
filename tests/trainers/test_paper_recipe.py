"""The paper's recipe: epochs, batch, optimiser, schedule and loss."""

from __future__ import annotations

import json

import pytest
import torch

from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_paper
from support.small_dataset import NAME, discs


def make(nnunet, monkeypatch, size: int) -> nnUNetTrainerMambaMIS_paper:
    discs(nnunet)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, nnunet.variables[name])
    folder = nnunet.preprocessed / NAME
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    plans["configurations"]["2d"]["patch_size"] = [size, size]
    dataset = json.loads((folder / "dataset.json").read_text())
    trainer = nnUNetTrainerMambaMIS_paper(plans, "2d", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    return trainer


@pytest.mark.feature(
    "Ablations",
    "`_paper` is the paper's recipe",
)
def test_paper_trainer_is_the_papers_recipe(nnunet, monkeypatch):
    trainer = make(nnunet, monkeypatch, 256)
    rates = {}
    for epoch in range(101):
        trainer.lr_scheduler.step(epoch)
        rates[epoch] = trainer.optimizer.param_groups[0]["lr"]
    assert [rates[epoch] for epoch in (0, 25, 50, 100)] == pytest.approx([1e-3, 5.05e-4, 1e-5, 1e-3])
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.01}
    assert (trainer.batch_size, trainer.num_epochs, len(trainer.network.decoder.seg_layers)) == (32, 300, 1)
    assert (type(trainer.loss).__name__, trainer.loss.weight_dice, trainer.loss.weight_ce) == ("DC_and_CE_loss", 1, 1)


@pytest.mark.feature("Ablations", "`_paper` refuses another patch size")
def test_paper_trainer_refuses_another_patch_size(nnunet, monkeypatch):
    with pytest.raises(SystemExit, match=r"\(64, 64\)"):
        make(nnunet, monkeypatch, 64)

"""The paper's recipe: epochs, batch, optimiser, schedule and loss."""

from __future__ import annotations

import pytest

from nnunet_mamba_mis.nnunet.plans import architecture_entry
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_paper
from support.trainer_in_process import make_trainer


@pytest.mark.feature("Ablations", "`_paper` follows the paper's recipe")
def test_paper_trainer_follows_the_papers_recipe(in_this_process):
    planned = architecture_entry((256, 256), "S", "conv")
    trainer = make_trainer(nnUNetTrainerMambaMIS_paper, in_this_process, patch_size=[256, 256], architecture=planned)
    trainer.initialize()
    assert trainer.network.arguments.items() >= {"variant": "B", "stem": "patch"}.items(), "whatever was planned"
    rates = {}
    for epoch in range(101):
        trainer.lr_scheduler.step(epoch)
        rates[epoch] = trainer.optimizer.param_groups[0]["lr"]
    assert [rates[epoch] for epoch in (0, 25, 50, 100)] == pytest.approx([1e-3, 5.05e-4, 1e-5, 1e-3])
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.01}
    assert (trainer.batch_size, trainer.num_epochs, len(trainer.network.decoder.seg_layers)) == (32, 300, 1)
    assert (type(trainer.loss).__name__, trainer.loss.weight_dice, trainer.loss.weight_ce) == ("DC_and_CE_loss", 1, 1)


@pytest.mark.feature("Ablations", "`_paper` refuses another patch size")
def test_paper_trainer_refuses_another_patch_size(in_this_process):
    trainer = make_trainer(nnUNetTrainerMambaMIS_paper, in_this_process, patch_size=[64, 64])
    with pytest.raises(SystemExit, match=r"\(64, 64\)"):
        trainer.initialize()

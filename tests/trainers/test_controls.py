"""Control trainers run in nnU-Net's commands: U-Mamba, and nnU-Net's network with this package's optimiser."""

from __future__ import annotations

import json

import pytest
import torch

from support.small_dataset import NUMBER, discs

CONTROLS = ["nnUNetTrainerUMambaBot", "nnUNetTrainerUMambaEnc", "nnUNetTrainerAdamW1e3"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(nnunet):
    """Train fold 0 of each control for one step; return the checkpoints by trainer."""
    discs(nnunet)
    nnunet.train_all([(NUMBER, 0, trainer) for trainer in CONTROLS])
    return {
        trainer: torch.load(nnunet.model(NUMBER, trainer) / "fold_0" / "checkpoint_final.pth", weights_only=False)
        for trainer in CONTROLS
    }


@pytest.mark.feature("Controls", "U-Mamba, and nnU-Net's network with AdamW, train and predict")
@pytest.mark.parametrize("trainer", CONTROLS)
def test_controls_train_and_predict_on_a_cpu(nnunet, trained, trainer, tmp_path):
    fold = nnunet.model(NUMBER, trainer) / "fold_0"
    assert json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]
    (log,) = fold.glob("training_log_*.txt")
    assert ("Selective scan: backend" in log.read_text()) == ("UMamba" in trainer)
    images = nnunet.raw / discs(nnunet).name / "imagesTr"
    nnunet.predict(NUMBER, trainer, images, tmp_path, "-f", 0)
    assert len(list(tmp_path.glob("*.png"))) == len(list(images.iterdir()))


@pytest.mark.feature("Controls", "their checkpoints hold what an exact resume needs")
@pytest.mark.parametrize("trainer", CONTROLS)
def test_checkpoints_hold_what_an_exact_resume_needs(trained, trainer):
    (progress,) = trained[trainer]["optimizer_state"]["resume"]
    assert {"random_state", "skipped_steps", "skipped_in_a_row"} <= progress.keys()


@pytest.mark.parametrize("trainer", CONTROLS)
def test_baseline_uses_the_optimiser_of_mamba_mis_and_umamba_uses_nnunets(trained, trainer):
    groups = trained[trainer]["optimizer_state"]["param_groups"]
    adamw = trainer == "nnUNetTrainerAdamW1e3"
    expected = [(True, 1e-3, 1e-2), (True, 1e-3, 0.0)] if adamw else [(False, 1e-2, 3e-5)]
    assert [("betas" in group, group["initial_lr"], group["weight_decay"]) for group in groups] == expected

"""Plans of `mamba_mis plan` in nnU-Net's own commands: stock trainers and ours, prediction, another patch size."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from nnunet_mamba_mis.architectures import VARIANTS
from support.images import disc_image
from support.nnunet_workplace import Dataset

NUMBER = 61
PLANS = "nnUNetMambaMISPlans"
STOCK_TRAINER = "nnUNetTrainer_brief"  # nnU-Net's own trainer, but with short training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planned(nnunet):
    """Plan S with a convolutional stem for a dataset; return its folder in nnUNet_preprocessed."""
    cases = {f"case{case}": disc_image(case) for case in range(6)}
    dataset = nnunet.add(Dataset(NUMBER, cases, {"background": 0, "disc": 1}))
    output = nnunet.run("mamba_mis", "plan", "-d", NUMBER, "--variant", "S", "--stem", "conv")
    assert f"nnUNetv2_train {NUMBER} 2d 0 -tr nnUNetTrainerMambaMIS -p {PLANS}" in output
    assert "nnUNetv2_preprocess" not in output  # nnU-Net's data are reused
    return nnunet.preprocessed / dataset.name


def model(nnunet, trainer, plans=PLANS):
    (folder,) = nnunet.results.glob(f"Dataset{NUMBER:03d}_*/{trainer}__{plans}__2d")
    return folder


def depths(fold):
    """Return the number of blocks in each stage of the network in a checkpoint, encoder first."""
    names = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    blocks = {tuple(name.split(".")[:5]) for name in names if ".blocks." in name}
    stages = sorted({(part, int(stage)) for part, _, stage, *_ in blocks}, key=lambda s: (s[0] != "encoder", s[1]))
    return [sum((b[0], int(b[2])) == stage for b in blocks) for stage in stages]


@pytest.fixture(scope="module")
def stock(nnunet, planned):
    """Fold 0, trained by nnU-Net's own trainer."""
    nnunet.train(NUMBER, 0, STOCK_TRAINER, "-p", PLANS)
    return model(nnunet, STOCK_TRAINER) / "fold_0"


@pytest.mark.feature("Planning", "`mamba_mis plan`, and training with nnU-Net's own trainer")
def test_nnunets_own_trainer_trains_the_planned_network(stock):
    assert depths(stock) == [*VARIANTS["S"].encoder, *VARIANTS["S"].decoder[:-1]]
    assert (stock / "validation" / "summary.json").exists()


@pytest.mark.feature("Planning", "prediction without our trainers")
def test_prediction_does_not_need_our_trainers(nnunet, stock, planned, tmp_path):
    # nnUNetTrainer itself would leave the same files under its own name, but its epochs take minutes
    folder = shutil.copytree(stock.parent, stock.parent.with_name(f"nnUNetTrainer__{PLANS}__2d"))
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save(checkpoint | {"trainer_name": "nnUNetTrainer"}, path)
    nnunet.run("nnUNetv2_predict", "-d", NUMBER, "-c", "2d", "-f", 0, "-p", PLANS, "-device", "cpu",
               "-i", nnunet.raw / planned.name / "imagesTr", "-o", tmp_path, "-npp", 0, "-nps", 0,
               nnUNet_extTrainer="")  # fmt: skip
    assert len(list(tmp_path.glob("*.png"))) == 6


@pytest.mark.feature("Planning", "our trainers follow the plans, or log where they do not")
def test_variant_of_the_trainer_overrides_the_plans_and_is_logged(nnunet, planned):
    nnunet.train(NUMBER, 0, "nnUNetTrainerMambaMIS_L", "-p", PLANS)
    fold = model(nnunet, "nnUNetTrainerMambaMIS_L") / "fold_0"
    assert depths(fold) == [*VARIANTS["L"].encoder, *VARIANTS["L"].decoder[:-1]]
    (log,) = fold.glob("training_log_*.txt")
    assert "Network: variant L, set by nnUNetTrainerMambaMIS_L. " in log.read_text()


@pytest.mark.feature("Planning", "our trainers follow the plans, or log where they do not")
@pytest.mark.feature("Fine-tuning", "`-pretrained_weights` of another patch size, and its log line")
def test_trainer_without_a_variant_follows_the_plans_and_loads_another_patch_size(nnunet, planned, stock):
    plans = json.loads((planned / f"{PLANS}.json").read_text())
    plans["plans_name"] = "larger"
    plans["configurations"]["2d"]["patch_size"] = [64, 96]
    (planned / "larger.json").write_text(json.dumps(plans))
    output = nnunet.train(NUMBER, 0, "Frozen", "-p", "larger", "-pretrained_weights", stock / "checkpoint_final.pth")

    fold = model(nnunet, "Frozen", "larger") / "fold_0"
    assert depths(fold) == [*VARIANTS["S"].encoder, *VARIANTS["S"].decoder[:-1]]
    line = (
        f"Pretrained weights {stock / 'checkpoint_final.pth'} have another patch size: resampled 14 spectral gates "
        "(2 from 8×8 to 16×24, 4 from 4×4 to 8×12, 4 from 2×2 to 4×6, 4 from 1×1 to 2×3)"
    )
    (log,) = fold.glob("training_log_*.txt")
    assert line in log.read_text() and line in output
    before, after = (
        torch.load(f / "checkpoint_final.pth", weights_only=False)["network_weights"] for f in (stock, fold)
    )
    kept = [name for name in before if "spectral_gate" not in name and "seg_layers" not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)

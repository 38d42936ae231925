"""Exports of a fold that nnU-Net's commands trained, compared with the fold and with nnU-Net's prediction."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_mamba_mis.export.fold import load_fold
from nnunet_mamba_mis.export.programs import run_pt2
from nnunet_mamba_mis.nnunet.plans import architecture_entry
from nnunet_mamba_mis.utils.errors import UserError
from support.onnx_files import assert_runtimes_agree, operators
from support.paths import PROGRAMS
from support.small_dataset import NUMBER, discs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(nnunet) -> Path:
    """Fold 0 of variant S, trained with a user's trainer."""
    discs(nnunet)
    nnunet.train(NUMBER, 0, "Short")
    return nnunet.model(NUMBER, "Short") / "fold_0"


@pytest.fixture(scope="module")
def unseen(tmp_path_factory) -> Path:
    """A folder with one image that is larger than the patch and has black borders."""
    image = np.random.default_rng(97).integers(30, 255, (60, 70)).astype(np.uint8)
    image[20:50, 30:60] //= 3
    folder = tmp_path_factory.mktemp("unseen")
    imageio.imwrite(folder / "unseen_0000.png", np.pad(image, [(3, 0), (0, 5)]))
    return folder


@pytest.fixture(scope="module")
def half_foreground(trained, unseen) -> str:
    """A checkpoint that predicts foreground for about half of the image's pixels.

    After so short a training run the network predicts no foreground, so the fixture shifts the last layer's bias.
    """
    fold = load_fold(trained.parent, "0")
    height, width = fold.network.patch_size
    patch = torch.from_numpy(imageio.imread(unseen / "unseen_0000.png")[3 : 3 + height, :width]).float()
    with torch.no_grad():
        background, foreground = fold.network(((patch - patch.mean()) / patch.std())[None, None])[0]
    checkpoint = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    checkpoint["network_weights"]["decoder.seg_layers.0.bias"][0] += (foreground - background).median()
    torch.save(checkpoint, trained / "checkpoint_half.pth")
    return "checkpoint_half.pth"


@pytest.fixture(scope="module")
def exported(nnunet, trained, half_foreground) -> Path:
    """The fold's files, written by `mamba_mis export`."""
    output = nnunet.root / "exported"
    printed = nnunet.run("mamba_mis", "export", "-m", trained.parent, "-f", 0, "-chk", half_foreground, "-o", output)
    assert "discretization zoh" in printed
    return output


def run_example(exported: Path, image: Path, output: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, PROGRAMS / "without_packages.py", "torch,nnunetv2,nnunet_mamba_mis,scipy"]
    return subprocess.run(
        [*command, exported / "predict_onnx.py", image, output], capture_output=True, text=True, check=False
    )


@pytest.mark.feature("Export", "numpy and onnxruntime alone segment as `nnUNetv2_predict` does")
def test_exported_script_matches_nnunets_prediction(nnunet, exported, half_foreground, unseen, tmp_path):
    """Images: one with black borders, one completely black, one of a single grey level."""
    imageio.imwrite(unseen / "black_0000.png", np.zeros((40, 70), np.uint8))
    imageio.imwrite(unseen / "flat_0000.png", np.full((70, 40), 9, np.uint8))
    nnunet.predict(NUMBER, "Short", unseen, tmp_path, "-f", 0, "-chk", half_foreground, "--disable_tta")
    for case in ("unseen", "black", "flat"):
        done = run_example(exported, unseen / f"{case}_0000.png", tmp_path / f"{case}_ours.png")
        assert done.returncode == 0, done.stderr[-2000:]
        ours, theirs = imageio.imread(tmp_path / f"{case}_ours.png"), imageio.imread(tmp_path / f"{case}.png")
        assert ours.shape == theirs.shape
        # nnU-Net sums windows in half precision
        assert (ours == theirs).mean() > 0.99, case
        assert case != "unseen" or 0.1 < theirs.mean() < 0.9


def test_exported_script_refuses_images_with_other_channels(exported, tmp_path):
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save(tmp_path / "image.png")
    done = run_example(exported, tmp_path / "image.png", tmp_path / "ours.png")
    assert done.returncode == 1 and not (tmp_path / "ours.png").exists()
    assert "image.png has" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.feature("Export", "`mamba_mis export` of a trained fold: `.pt2` and ONNX")
@pytest.mark.feature("Export", "ONNX of a whole network is within 1e-4 in onnxruntime and OpenVINO")
def test_exported_programs_match_the_trained_network(exported, trained, half_foreground):
    fold = load_fold(trained.parent, "0", half_foreground)
    x = torch.randn(3, 1, *fold.network.patch_size)
    with torch.no_grad():
        expected = fold.network(x)
    torch.testing.assert_close(run_pt2(exported / "network.pt2", x), expected, rtol=0, atol=1e-4)
    assert_runtimes_agree(exported / "network.onnx", x, expected, 1e-4)


def test_exported_onnx_is_small(exported, trained):
    assert len(operators(exported / "network.onnx")) < 10_000
    # spectral gates share the constants of their transforms
    parameters = sum(p.numel() for p in load_fold(trained.parent, "0").network.parameters())
    assert (exported / "network.onnx").stat().st_size < 1.5 * 4 * parameters


def test_description_records_nnunets_preprocessing(trained):
    about = load_fold(trained.parent, "0").description
    plans = json.loads((trained.parent / "plans.json").read_text())["configurations"]["2d"]
    assert json.loads(json.dumps(about)) == about
    assert about["patch_size"] == plans["patch_size"] and about["spacing"] == plans["spacing"]
    assert [channel["scheme"] for channel in about["normalization"]] == plans["normalization_schemes"]
    assert about["labels"] == {"background": 0, "polyp": 1} and about["regions_class_order"] is None
    assert (about["trainer"], about["fold"]) == ("Short", "0")


@pytest.fixture
def old_model(trained, tmp_path):
    """Return a function that writes the model with an old checkpoint, which does not record its network."""

    def write(trainer_name: str = "Short", architecture: dict | None = None) -> Path:
        (tmp_path / "fold_0").mkdir()
        (tmp_path / "dataset.json").write_bytes((trained.parent / "dataset.json").read_bytes())
        plans = json.loads((trained.parent / "plans.json").read_text())
        if architecture is not None:
            plans["configurations"]["2d"]["architecture"] = architecture
        (tmp_path / "plans.json").write_text(json.dumps(plans))
        checkpoint = torch.load(trained / "checkpoint_final.pth", weights_only=False)
        del checkpoint["optimizer_state"]["network"]
        torch.save(checkpoint | {"trainer_name": trainer_name}, tmp_path / "fold_0" / "checkpoint_final.pth")
        return tmp_path

    return write


def assert_same_weights(model: Path, trained: Path) -> None:
    expected = torch.load(trained / "checkpoint_final.pth", weights_only=False)["network_weights"]
    weights = load_fold(model, "0").network.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_old_checkpoint_gets_the_network_of_its_trainer(old_model, trained):
    assert_same_weights(old_model("nnUNetTrainerMambaMIS_S"), trained)


@pytest.mark.feature("Export", "folds of plans made by `mamba_mis plan`")
def test_old_checkpoint_gets_the_network_of_its_plans(old_model, trained):
    patch_size = json.loads((trained.parent / "plans.json").read_text())["configurations"]["2d"]["patch_size"]
    assert_same_weights(old_model("nnUNetTrainer", architecture_entry(tuple(patch_size), "S")), trained)


def test_weights_of_another_network_are_refused(old_model):
    with pytest.raises(UserError, match="nnUNetTrainerMambaMIS_L"):
        load_fold(old_model(), "0", trainer="nnUNetTrainerMambaMIS_L")

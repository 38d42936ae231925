"""The whole way through real command lines: convert, plan, preprocess, train, resume, predict."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from nnunet_mamba_mis import trainers
from nnunet_mamba_mis.export.fold import load_fold
from nnunet_mamba_mis.export.programs import run_onnx, run_pt2
from nnunet_mamba_mis.nnunet.plans import architecture_entry
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.utils.errors import UserError
from support.paths import REPOSITORY

SCRIPTS = Path(sys.executable).parent
CASES = 10

# a user's own trainer, in a folder of theirs
SHORT_TRAINER = """
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_S

class ShortTrainer(nnUNetTrainerMambaMIS_S):
    epochs = 3
    iterations_per_epoch = 3
    validation_iterations_per_epoch = 1

class NaNTrainer(ShortTrainer):
    iterations_per_epoch = 30
    broken_from = 5

    def train_step(self, batch):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps in (2, 3) or self.steps >= self.broken_from:
            batch["data"][0, 0, 0, 0] = float("nan")
        return super().train_step(batch)

class RecoveringTrainer(NaNTrainer):
    epochs = 1
    iterations_per_epoch = 6
    broken_from = 99
"""


def polyp_image(seed: int, height: int = 40, width: int = 36) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image with a bright disc, and its 0/255 mask."""
    rng = np.random.default_rng(seed)
    row, column = np.ogrid[:height, :width]
    mask = (row - rng.integers(12, 28)) ** 2 + (column - rng.integers(12, 24)) ** 2 < rng.integers(5, 9) ** 2
    image = rng.integers(0, 60, (height, width, 3)) + np.array([120, 60, 50]) + 70 * mask[..., None]
    return image.astype(np.uint8), (255 * mask).astype(np.uint8)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a tiny set in Kvasir-SEG's layout and a user's trainer."""
    root = tmp_path_factory.mktemp("command lines")  # with a space in its name
    for folder in ("source/images", "source/masks", "raw", "preprocessed", "results", "trainers"):
        (root / folder).mkdir(parents=True)
    for case in range(CASES):
        image, mask = polyp_image(case)
        imageio.imwrite(root / f"source/images/case{case}.jpg", image, quality=95)
        imageio.imwrite(root / f"source/masks/case{case}.jpg", np.stack([mask] * 3, -1), quality=90)
    (root / "trainers/my_trainers.py").write_text(SHORT_TRAINER)
    return root


def environment(root: Path) -> dict[str, str]:
    return os.environ | {
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "preprocessed"),
        "nnUNet_results": str(root / "results"),
        "nnUNet_extTrainer": str(root / "trainers"),
        "nnUNet_def_n_proc": "1",
    }


def training_environment(root: Path) -> dict[str, str]:
    # augmentation in the main process; planning does not take the 0
    return environment(root) | {"nnUNet_n_proc_DA": "0"}


def run(root: Path, command: str, *args: object, status: int = 0) -> str:
    """Run an installed command to its end and return what it printed."""
    done = subprocess.run(
        [SCRIPTS / command, *map(str, args)],
        env=training_environment(root) if command == "nnUNetv2_train" else environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def preprocessed(workplace) -> Path:
    """The workplace after convert, plan and preprocess."""
    run(workplace, "mamba_mis", "convert", "kvasir-seg", "-i", workplace / "source", "-d", 7, "-np", 1)
    run(
        workplace,
        "nnUNetv2_plan_and_preprocess",
        "-d",
        7,
        "-c",
        "2d",
        "--verify_dataset_integrity",
        "-npfp",
        1,
        "-np",
        1,
    )
    return workplace


@pytest.fixture(scope="module")
def trained(preprocessed) -> Path:
    """Fold 0 trained by a user's trainer, killed in the middle and continued; returns the fold's folder."""
    fold = preprocessed / "results/Dataset007_KvasirSEG" / "ShortTrainer__nnUNetPlans__2d" / "fold_0"
    command = [SCRIPTS / "nnUNetv2_train", "7", "2d", "0", "-tr", "ShortTrainer", "-device", "cpu"]
    log = (preprocessed / "killed.log").open("w")
    process = subprocess.Popen(command, env=training_environment(preprocessed), stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while not (fold / "checkpoint_best.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline, (preprocessed / "killed.log").read_text()[-4000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (fold / "checkpoint_final.pth").exists(), "finished before it could be killed"
    run(preprocessed, "nnUNetv2_train", 7, "2d", 0, "-tr", "ShortTrainer", "-device", "cpu", "--c")
    return fold


@pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")
def test_training_on_a_cpu_uses_the_native_scan(trained):
    assert "Selective scan: backend cpp" in next(trained.glob("training_log_*.txt")).read_text()


def test_training_that_was_killed_continues(trained):
    logs = [log.read_text() for log in sorted(trained.glob("training_log_*.txt"), key=lambda p: p.stat().st_mtime)]
    assert "Epoch 0" in logs[0] and "Training done" not in logs[0]
    assert "Epoch 0" not in logs[-1] and "Epoch 2" in logs[-1] and "Training done" in logs[-1]
    assert (trained / "validation" / "summary.json").exists()
    assert not list(trained.glob("*.partial"))


def test_checkpoint_holds_adamw_without_decay_on_state_parameters(trained):
    checkpoint = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    decayed, exempt = checkpoint["optimizer_state"]["param_groups"]
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)
    names = [n for n in checkpoint["network_weights"] if n.rpartition(".")[2] in ("A_log", "D", "bias")]
    norms = [n for n in checkpoint["network_weights"] if "norm" in n and n.endswith("weight")]
    norms += [n for n in checkpoint["network_weights"] if n.endswith("scan.fusion.0.weight")]
    assert len(exempt["params"]) == len(names) + len(norms)


def test_prediction_has_the_size_and_labels_of_its_image(trained, preprocessed):
    image, _ = polyp_image(99, height=53, width=61)  # larger than any that training saw
    (preprocessed / "new").mkdir()
    imageio.imwrite(preprocessed / "new" / "unseen_0000.png", image)
    run(preprocessed, "nnUNetv2_predict", "-d", 7, "-c", "2d", "-f", 0, "-tr", "ShortTrainer", "-device", "cpu",
        "-i", preprocessed / "new", "-o", preprocessed / "out", "-npp", 1, "-nps", 1)  # fmt: skip
    prediction = imageio.imread(preprocessed / "out" / "unseen.png")
    assert prediction.shape == image.shape[:2] and set(np.unique(prediction)) <= {0, 1}


PREDICT = """
import sys
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunet_mamba_mis.ops import native_library as native
sys.argv[0] = "nnUNetv2_predict"
predict_entry_point()
print("native code loaded:", native.library.cache_info().currsize == 1)
"""


@pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")
def test_prediction_on_a_cpu_uses_the_native_scan(trained, preprocessed, tmp_path):
    image, _ = polyp_image(98, height=40, width=40)
    (tmp_path / "new").mkdir()
    imageio.imwrite(tmp_path / "new" / "unseen_0000.png", image)
    command = [sys.executable, "-c", PREDICT, "-d", "7", "-c", "2d", "-f", "0", "-tr", "ShortTrainer", "-device", "cpu"]
    command += ["-i", tmp_path / "new", "-o", tmp_path / "out", "-npp", "1", "-nps", "1"]
    done = subprocess.run(command, env=environment(preprocessed), capture_output=True, text=True, timeout=300)
    assert "native code loaded: True" in done.stdout, done.stderr[-2000:]


@pytest.fixture(scope="module")
def half_foreground(trained, tmp_path_factory) -> tuple[Path, str]:
    """An unseen image, and a checkpoint with which about half of its pixels are foreground.

    Training has been too short to find any; the bias of the last layer is moved.
    """
    image, _ = polyp_image(97, height=75, width=90)
    image = np.pad(image, [(3, 0), (0, 5), (0, 0)])  # with black borders
    folder = tmp_path_factory.mktemp("unseen")
    imageio.imwrite(folder / "unseen_0000.png", image)
    fold = load_fold(trained.parent, "0")
    height, width = fold.network.patch_size
    patch = torch.from_numpy(image[3 : 3 + height, :width]).permute(2, 0, 1).float()
    patch = (patch - patch.mean((1, 2), keepdim=True)) / patch.std((1, 2), keepdim=True)
    with torch.no_grad():
        background, foreground = fold.network(patch[None])[0]
    checkpoint = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    checkpoint["network_weights"]["decoder.seg_layers.0.bias"][0] += (foreground - background).median()
    torch.save(checkpoint, trained / "checkpoint_half.pth")
    return folder, "checkpoint_half.pth"


@pytest.fixture(scope="module")
def exported(trained, preprocessed, half_foreground) -> Path:
    """The fold's files, written by `mamba_mis export`."""
    printed = run(preprocessed, "mamba_mis", "export", "-m", trained.parent, "-f", 0, "-chk", half_foreground[1],
                  "-o", preprocessed / "exported")  # fmt: skip
    assert "discretization zoh" in printed and "(as the checkpoint says)" in printed
    assert "onnx: largest difference to the network" in printed and "pt2: largest difference" in printed
    return preprocessed / "exported"


@pytest.mark.slow
def test_documented_example_segments_as_nnunet_with_numpy_and_onnxruntime_alone(
    exported, trained, preprocessed, half_foreground, tmp_path
):
    images, checkpoint = half_foreground
    run(preprocessed, "nnUNetv2_predict", "-d", 7, "-c", "2d", "-f", 0, "-tr", "ShortTrainer", "-device", "cpu",
        "-i", images, "-o", tmp_path, "-chk", checkpoint, "--disable_tta", "-npp", 1, "-nps", 1)  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "documentation" / "export.md").read_text(), re.DOTALL)
    forbidden = "import sys\nsys.modules.update(dict.fromkeys(['torch', 'nnunetv2', 'nnunet_mamba_mis', 'scipy']))\n"
    command = [
        sys.executable,
        "-c",
        forbidden + blocks[-1],
        exported,
        images / "unseen_0000.png",
        tmp_path / "ours.png",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = imageio.imread(tmp_path / "ours.png"), imageio.imread(tmp_path / "unseen.png")
    assert ours.shape == theirs.shape and 0.1 < theirs.mean() < 0.9
    # nnU-Net adds up windows in half precision
    assert (ours == theirs).mean() > 0.99


@pytest.mark.slow
def test_exported_program_is_the_trained_network(exported, trained, half_foreground):
    fold = load_fold(trained.parent, "0", half_foreground[1])
    x = torch.randn(3, 3, *fold.network.patch_size)
    with torch.no_grad():
        expected = fold.network(x)
    torch.testing.assert_close(run_pt2(exported / "network.pt2", x), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(run_onnx(exported / "network.onnx", x), expected, rtol=0, atol=1e-4)


def test_export_describes_what_nnunet_does_to_images(trained):
    about = load_fold(trained.parent, "0").description
    plans = json.loads((trained.parent / "plans.json").read_text())["configurations"]["2d"]
    assert json.loads(json.dumps(about)) == about
    assert about["patch_size"] == plans["patch_size"] and about["spacing"] == plans["spacing"]
    assert [channel["scheme"] for channel in about["normalization"]] == plans["normalization_schemes"]
    assert about["labels"] == {"background": 0, "polyp": 1} and about["regions_class_order"] is None
    assert (about["trainer"], about["fold"]) == ("ShortTrainer", "0")


def without_its_network(fold: Path) -> dict:
    """A checkpoint as older ones are, which do not say what their network is."""
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    del checkpoint["optimizer_state"]["network"]
    return checkpoint


def test_export_takes_the_network_of_the_trainer_in_the_checkpoint(trained):
    checkpoint = without_its_network(trained)
    torch.save(checkpoint | {"trainer_name": "nnUNetTrainerMambaMIS_S"}, trained / "checkpoint_ours.pth")
    weights = load_fold(trained.parent, "0", "checkpoint_ours.pth").network.state_dict()
    assert all(torch.equal(weights[name], checkpoint["network_weights"][name]) for name in weights)


def test_export_takes_the_network_of_plans_made_for_it(trained, tmp_path):
    """As `mamba_mis plan` makes them: nnU-Net's own trainers train Mamba-MIS then."""
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "dataset.json").write_bytes((trained.parent / "dataset.json").read_bytes())
    plans = json.loads((trained.parent / "plans.json").read_text())
    configuration = plans["configurations"]["2d"]
    configuration["architecture"] = architecture_entry(tuple(configuration["patch_size"]), "S")
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    checkpoint = without_its_network(trained)
    torch.save(checkpoint | {"trainer_name": "nnUNetTrainer"}, tmp_path / "fold_0" / "checkpoint_final.pth")
    weights = load_fold(tmp_path, "0").network.state_dict()
    assert all(torch.equal(weights[name], checkpoint["network_weights"][name]) for name in weights)


def test_export_refuses_weights_of_another_network(trained):
    torch.save(without_its_network(trained), trained / "checkpoint_old.pth")
    with pytest.raises(UserError, match=r"checkpoint_old.pth do not fit the network as nnUNetTrainerMambaMIS_L .*enc"):
        load_fold(trained.parent, "0", "checkpoint_old.pth", "nnUNetTrainerMambaMIS_L")


def test_single_non_finite_steps_are_skipped_and_counted(preprocessed):
    output = run(preprocessed, "nnUNetv2_train", 7, "2d", 0, "-tr", "RecoveringTrainer", "-device", "cpu")
    assert "2 in a row, 2 since the start" in output
    assert "Skipped 2 of 6 steps" in output
    assert "train_loss nan" not in output and "Training done" in output
    folder = preprocessed / "results/Dataset007_KvasirSEG/RecoveringTrainer__nnUNetPlans__2d/fold_0"
    weights = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert all(w.isfinite().all() for w in weights.values())


def test_twenty_non_finite_steps_in_a_row_stop_training(preprocessed):
    output = run(preprocessed, "nnUNetv2_train", 7, "2d", 1, "-tr", "NaNTrainer", "-device", "cpu", status=1)
    assert "Traceback" not in output
    assert "not finite in 20 steps in a row" in output and "Likely causes" in output


def test_3d_configuration_of_a_3d_dataset_is_refused():
    """In a process of its own, as the trainer ends it."""
    code = """
import torch
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS
sizes = {"2d": [64, 64], "3d_fullres": [32, 64, 64]}
configurations = {name: {"patch_size": size, "architecture": {}} for name, size in sizes.items()}
plans = {"dataset_name": "Dataset001_CT", "configurations": configurations, "continue_training": False}
nnUNetTrainerMambaMIS(plans, "3d_fullres", 0, {}, torch.device("cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Mamba-MIS is a 2D network and cannot train configuration '3d_fullres': use one of: 2d." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "unset", "message"),
    [
        (["3d_fullres", "0"], None, "Configuration '3d_fullres' is not in the plans of Dataset007_KvasirSEG"),
        (["2d", "0"], "nnUNet_results", "nnUNet_results is not set"),
        pytest.param(
            ["2d", "0", "-device", "cuda"],
            None,
            "add -device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
    ids=["3D configuration", "path unset", "no GPU"],
)
def test_what_cannot_be_trained_ends_with_one_message(preprocessed, arguments, unset, message):
    variables = training_environment(preprocessed)
    variables.pop(unset, None)
    command = [SCRIPTS / "nnUNetv2_train", "7", *arguments[:2], "-tr", "nnUNetTrainerMambaMIS"]
    command += arguments[2:] or ["-device", "cpu"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (preprocessed / "results" / "Dataset007_KvasirSEG" / "nnUNetTrainerMambaMIS__nnUNetPlans__2d").exists()


PAPER_TRAINER = """
import json, sys, torch
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_paper
folder, size = sys.argv[1], int(sys.argv[2])
plans = json.load(open(folder + "/nnUNetPlans.json"))
plans["configurations"]["2d"]["patch_size"] = [size, size]
dataset = json.load(open(folder + "/dataset.json"))
trainer = nnUNetTrainerMambaMIS_paper(plans | {"continue_training": False}, "2d", 0, dataset, torch.device("cpu"))
trainer.initialize()
rates = []
for epoch in range(101):
    trainer.lr_scheduler.step(epoch)
    rates.append(trainer.optimizer.param_groups[0]["lr"])
print(json.dumps({
    "rates": [rates[0], rates[25], rates[50], rates[100]],
    "decay": {group["weight_decay"] for group in trainer.optimizer.param_groups}.pop(),
    "batch": trainer.batch_size, "epochs": trainer.num_epochs, "outputs": len(trainer.network.decoder.seg_layers),
    "loss": [type(trainer.loss).__name__, trainer.loss.weight_dice, trainer.loss.weight_ce],
}))
"""


def paper_trainer(preprocessed, size):
    folder = preprocessed / "preprocessed" / "Dataset007_KvasirSEG"
    command = [sys.executable, "-W", "ignore", "-c", PAPER_TRAINER, folder, str(size)]
    return subprocess.run(command, env=environment(preprocessed), capture_output=True, text=True)


def test_paper_trainer_is_the_papers_recipe(preprocessed):
    done = paper_trainer(preprocessed, 256)
    assert done.returncode == 0, done.stderr[-2000:]
    recipe = json.loads(done.stdout.splitlines()[-1])
    assert recipe.pop("rates") == pytest.approx([1e-3, 5.05e-4, 1e-5, 1e-3])
    loss = ["DC_and_CE_loss", 1, 1]
    assert recipe == {"decay": 0.01, "batch": 32, "epochs": 300, "outputs": 1, "loss": loss}


def test_paper_trainer_refuses_another_patch_size(preprocessed):
    done = paper_trainer(preprocessed, 64)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the plans have patches of (64, 64)" in done.stderr


def test_every_documented_trainer_is_there():
    lengths = ["1epoch", *(f"{n}epochs" for n in (5, 10, 20, 50, 100, 250, 500))]
    ablations = [
        "ss2d",
        "noSG",
        "attentionOnly",
        "fusionOnly",
        "noBridge",
        "cnn",
        "vit",
        "noSSM",
        "mambaDiscretization",
    ]
    names = [f"nnUNetTrainerMambaMIS_{name}" for name in ("S", "L", "paper", *lengths, *ablations)]
    assert {"nnUNetTrainerMambaMIS", *names} <= set(trainers.__all__)
    assert all(issubclass(getattr(trainers, name), trainers.nnUNetTrainerMambaMIS) for name in names)

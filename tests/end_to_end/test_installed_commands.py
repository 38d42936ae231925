"""All steps with the installed commands: convert, plan, preprocess, train, predict."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from support.convert_trees import photograph, write_kvasir
from support.paths import PROGRAMS

SCRIPTS = Path(sys.executable).parent
TRAINER = "nnUNetTrainerMambaMIS_S"  # the trainer of this name in brief_trainers.py
MODEL = f"results/Dataset007_KvasirSEG/{TRAINER}__nnUNetPlans__2d"

pytestmark = pytest.mark.slow


def environment(root: Path) -> dict[str, str]:
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    return os.environ | folders | {"nnUNet_extTrainer": str(root / "trainers"), "nnUNet_def_n_proc": "1"}


def run(root: Path, command: str, *arguments: object, **variables: str) -> None:
    done = subprocess.run(
        [SCRIPTS / command, *map(str, arguments)],
        env=environment(root) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory) -> Path:
    """A folder with a space in its name, with a preprocessed set in Kvasir-SEG's layout and a user's trainers."""
    root = tmp_path_factory.mktemp("command lines")
    for folder in ("raw", "preprocessed", "results", "trainers"):
        (root / folder).mkdir()
    shutil.copy(PROGRAMS / "brief_trainers.py", root / "trainers")
    source = write_kvasir(root / "source", 10)
    run(root, "mamba_mis", "convert", "kvasir-seg", "-i", source, "-d", 7, "-np", 1)
    run(root, "nnUNetv2_plan_and_preprocess", "-d", 7, "-c", "2d", "-npfp", 1, "-np", 1)
    return root


@pytest.fixture(scope="module")
def trained(preprocessed) -> Path:
    """The folder of fold 0, trained with a user's trainer."""
    # augment in the main process; set only here, as planning rejects the value 0
    run(preprocessed, "nnUNetv2_train", 7, "2d", 0, "-tr", TRAINER, "-device", "cpu", nnUNet_n_proc_DA="0")
    return preprocessed / MODEL / "fold_0"


def test_training_ends_with_a_validation(trained):
    (log,) = trained.glob("training_log_*.txt")
    assert "Epoch 0" in log.read_text() and "Training done" in log.read_text()
    assert (trained / "validation" / "summary.json").exists() and (trained / "progress.png").exists()
    assert not list(trained.glob("*.partial"))


def test_prediction_has_the_size_of_its_image_and_valid_labels(trained, preprocessed):
    larger_than_any_in_training = (53, 61)
    (preprocessed / "new").mkdir()
    imageio.imwrite(preprocessed / "new" / "unseen_0000.png", photograph(larger_than_any_in_training, 99))
    model = ["-d", 7, "-c", "2d", "-f", 0, "-tr", TRAINER, "-device", "cpu", "-npp", 1, "-nps", 1]
    run(preprocessed, "nnUNetv2_predict", *model, "-i", preprocessed / "new", "-o", preprocessed / "out")
    prediction = imageio.imread(preprocessed / "out" / "unseen.png")
    assert prediction.shape == larger_than_any_in_training and set(np.unique(prediction)) <= {0, 1}

"""Trainers are found by name, in every length."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_mamba_mis
from nnunet_mamba_mis import trainers

SHIM = Path(nnunet_mamba_mis.__file__).parent / "nnunet_ext_trainers" / "mamba_mis_trainers.py"
OURS = "nnUNetTrainerMambaMIS"


@pytest.fixture(scope="module")
def shim():
    """The module that nnU-Net imports from `nnunet_ext_trainers`, imported at the top level as nnU-Net does."""
    spec = importlib.util.spec_from_file_location("mamba_mis_trainers", SHIM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.feature("Ablations", "every trainer exists in every length")
@pytest.mark.parametrize("name", trainers.__all__)
@pytest.mark.parametrize("length", ["1epoch", "2epochs", "10epochs", "137epochs", "1000epochs"])
def test_every_trainer_has_every_length(shim, name, length):
    trainer = getattr(trainers, f"{name}_{length}")
    assert trainer.epochs == int(length.rstrip("epochs"))
    assert trainer.__bases__ == (getattr(trainers, name),) and trainer.__name__ == f"{name}_{length}"
    assert getattr(shim, trainer.__name__) is getattr(trainers, trainer.__name__) is trainer


@pytest.mark.parametrize("name", trainers.__all__)
def test_nnunet_gets_the_class_of_the_package(shim, name):
    assert getattr(shim, name) is getattr(trainers, name)
    assert getattr(trainers, name).__name__ == name


@pytest.mark.parametrize("name", [OURS, f"{OURS}_cnn", f"{OURS}_cnn_7epochs", "nnUNetTrainerUMambaBot_1epoch"])
def test_trainers_pickle_by_name(name):
    trainer = getattr(trainers, name)
    assert pickle.loads(pickle.dumps(trainer)) is trainer


@pytest.mark.parametrize(
    "name",
    [
        f"{OURS}_1epochs",
        f"{OURS}_2epoch",
        f"{OURS}_0epochs",
        f"{OURS}_07epochs",
        f"{OURS}_-5epochs",
        f"{OURS}_٣epochs",
        f"{OURS}_epochs",
        f"{OURS}_5epochs_5epochs",
        f"{OURS}_absent",
        f"{OURS}_absent_5epochs",
        "nnUNetTrainer",
        "nnUNetTrainer_5epochs",
        "ABLATIONS_5epochs",
        "_5epochs",
        "paper",
        "trainers",
        "__wrapped__",
    ],
)
def test_other_names_do_not_exist(shim, name):
    assert not hasattr(shim, name)
    if name != "paper":  # the package has a module of this name
        assert not hasattr(trainers, name)


def test_ablations_are_trainers_that_change_the_network():
    assert len(trainers.ABLATIONS) == 9 and set(trainers.ABLATIONS) < set(trainers.__all__) <= set(dir(trainers))
    assert all(vars(getattr(trainers, name))["architecture"] for name in trainers.ABLATIONS)


def test_shim_is_quiet_without_the_package(tmp_path):
    """Another environment may inherit nnUNet_extTrainer."""
    (tmp_path / "mamba_mis_trainers.py").write_bytes(SHIM.read_bytes())
    # -S: without site-packages, where the package is
    command = [sys.executable, "-S", "-c", "import mamba_mis_trainers as m; print(hasattr(m, 'Other_5epochs'))"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")

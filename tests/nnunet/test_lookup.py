"""Classes are found by name in the source code, and are the same ones that nnU-Net finds."""

from __future__ import annotations

import os

import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

from nnunet_mamba_mis import trainers
from nnunet_mamba_mis.nnunet.lookup import find_definition, find_trainer, overrides


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ("nnUNetTrainer", False),
        ("nnUNetTrainer_100epochs", False),
        ("nnUNetTrainerNoMirroring", False),
        ("nnUNetTrainerBN", True),
        # derived from a trainer that overrides the method
        ("nnUNetTrainer_Primus_M_Patch", True),
        # not nnU-Net's own trainers
        ("nnUNetTrainerMambaMIS", True),
        ("nnUNetTrainerOfNobody", True),
        ("no identifier", True),
    ],
)
def test_source_tells_whether_a_trainer_builds_its_own_network(trainer, expected):
    assert overrides(trainer, "build_network_architecture") == expected


def test_trainers_of_nnunet_this_package_and_users_are_found(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS\n"
        "globals()['Made'] = type('Made', (nnUNetTrainerMambaMIS,), {})\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), os.environ["nnUNet_extTrainer"]]))
    assert find_trainer("nnUNetTrainer") is nnUNetTrainer
    assert find_trainer("nnUNetTrainerBN") is nnUNetTrainerBN
    assert find_trainer("nnUNetTrainerMambaMIS_7epochs") is trainers.nnUNetTrainerMambaMIS_7epochs
    assert issubclass(find_trainer("Made"), trainers.nnUNetTrainerMambaMIS)


def test_readers_are_found():
    assert find_definition("nnunetv2.imageio", "SimpleITKIO") is SimpleITKIO
    assert find_definition("nnunetv2.imageio", "os") is None

"""nnU-Net with the patch of documentation/upstream finds the trainers by entry points, without nnUNet_extTrainer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nnunetv2
import pytest

from nnunet_mamba_mis import trainers
from support.paths import PROGRAMS, REPOSITORY

PATCH = REPOSITORY / "documentation" / "upstream" / "trainer_entry_points.patch"
# the installed package sets the variable when Python starts
WITHOUT_VARIABLE = (
    "import os, runpy, sys; del os.environ['nnUNet_extTrainer'], sys.argv[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture
def patched(tmp_path: Path) -> Path:
    """A folder with a patched copy of nnU-Net."""
    if version("nnunetv2") != "2.8.1":
        pytest.skip(f"the patch is for nnU-Net 2.8.1, not {version('nnunetv2')}")
    shutil.copytree(Path(nnunetv2.__file__).parent, tmp_path / "nnunetv2")
    subprocess.run(["git", "apply", PATCH], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.slow
def test_patched_nnunet_finds_every_trainer_without_the_variable(patched):
    names = [*trainers.__all__, *(f"{name}_7epochs" for name in trainers.__all__)]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_VARIABLE, PROGRAMS / "find_trainers.py", *names]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(patched)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(name, same) for _, name, same, _ in json.loads(done.stdout)] == [(name, True) for name in names]

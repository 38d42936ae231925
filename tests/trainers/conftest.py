"""Fixtures that tests of trainers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.small_dataset import discs


@pytest.fixture
def in_this_process(nnunet, tmp_path, monkeypatch) -> Path:
    """Set nnU-Net's variables for trainers made in this process; return the folder of the preprocessed discs."""
    nnunet.set_here(monkeypatch, nnUNet_results=str(tmp_path / "results"), nnUNet_n_proc_DA="0")
    return nnunet.preprocessed / discs(nnunet).name

"""Fixtures for the tests of `mamba_mis demo`."""

from __future__ import annotations

import pytest

from nnunet_mamba_mis.demo.workplace import Workplace

# output of nnU-Net 2.8.1 with NumPy 2
NNUNET_OUTPUT = """\
2025-11-23 10:00:00.000001: Epoch 0
2025-11-23 10:00:00.000002: Current learning rate: 0.001
2025-11-23 10:00:47.000001: train_loss -0.1234
2025-11-23 10:00:47.000002: val_loss 0.05
2025-11-23 10:00:47.000003: Pseudo dice [np.float32(0.4321)]
2025-11-23 10:00:47.000004: Epoch time: 47.12 s
2025-11-23 10:00:47.000005: Yayy! New best EMA pseudo Dice: 0.4321
2025-11-23 10:00:48.000001:
2025-11-23 10:00:48.000002: Epoch 1
2025-11-23 10:01:30.000001: train_loss -0.4
2025-11-23 10:01:30.000002: val_loss -0.35
2025-11-23 10:01:30.000003: Pseudo dice [nan]
2025-11-23 10:01:30.000004: Epoch time: 42.0 s
"""


@pytest.fixture
def nnunet_output() -> str:
    return NNUNET_OUTPUT


@pytest.fixture
def place(tmp_path) -> Workplace:
    """The demo's folder after conversion, without images."""
    place = Workplace(tmp_path / "out", "Tiny", "cpu", cores=2)
    for name in ("imagesTr", "imagesTs", "labelsTs"):
        (place.raw / name).mkdir(parents=True)
    return place

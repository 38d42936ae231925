"""Names that plans, checkpoints, scripts and people rely on stay as recorded in manifest.json."""

from __future__ import annotations

import json

import pytest

from nnunet_mamba_mis import trainers
from support.manifest import FILE, describe

RECORDED = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def described():
    return describe()


@pytest.mark.parametrize("network", RECORDED["weights"])
def test_weights_have_the_recorded_names_and_shapes(described, network):
    assert described["weights"][network] == RECORDED["weights"][network]


@pytest.mark.parametrize("command", RECORDED["options"])
def test_commands_have_the_recorded_options(described, command):
    assert described["options"][command] == RECORDED["options"][command]


@pytest.mark.parametrize("name", RECORDED["trainers"])
def test_trainers_have_the_recorded_names(name):
    assert getattr(trainers, name).__name__ == name

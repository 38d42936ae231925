"""`-pretrained_weights` from another patch size; with nnU-Net's commands in test_planned_training.py."""

from __future__ import annotations

import gc
import sys
import weakref
from types import ModuleType

import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights as nnunets_own
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS, resample_spectral_gates
from nnunet_mamba_mis.trainers.pretrained_weights import load_pretrained_weights, replace_loader


def network(*patch_size):
    return MambaMIS(1, 2, patch_size, variant="S", d_state=4)


def checkpoint(folder, weights):
    path = folder / "checkpoint_final.pth"
    torch.save({"network_weights": weights}, path)
    return str(path)


def load(network, path):
    """Load as nnU-Net does, and return what was said."""
    said = []
    load_pretrained_weights(network, path, log=said.append)
    return said


def without_heads(weights):
    return {name: tensor for name, tensor in weights.items() if ".seg_layers." not in name}


@pytest.mark.feature("Fine-tuning", "the same under torch.compile; other networks are refused")
@pytest.mark.parametrize("wrap", [lambda network: network, torch.compile], ids=["bare", "compiled"])
def test_pretrained_weights_of_another_patch_size_are_resampled(tmp_path, wrap):
    small, large = network(64, 64), network(96, 128)
    (line,) = load(wrap(large), checkpoint(tmp_path, small.state_dict()))
    assert "resampled 15 spectral gates" in line and "1 from 64×64 to 96×128" in line
    expected = without_heads(resample_spectral_gates(small.state_dict(), large))
    loaded = large.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.feature("Fine-tuning", "the same under torch.compile; other networks are refused")
def test_pretrained_weights_of_the_same_patch_size_are_loaded_bit_for_bit(tmp_path):
    one, other = network(64, 64), network(64, 64)
    assert load(other, checkpoint(tmp_path, one.state_dict())) == []
    loaded = other.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in without_heads(one.state_dict()).items())


@pytest.mark.feature("Fine-tuning", "the same under torch.compile; other networks are refused")
def test_pretrained_weights_of_another_network_are_refused(tmp_path):
    path = checkpoint(tmp_path, MambaMIS(1, 2, (96, 96), variant="B", d_state=4).state_dict())
    with pytest.raises(SystemExit, match="of another network than MambaMIS: it has no encoder"):
        load(MambaMIS(1, 2, (64, 64), variant="L", d_state=4), path)
    conv = nn.Conv2d(1, 1, 3)
    load(conv, checkpoint(tmp_path, {name: torch.ones_like(tensor) for name, tensor in conv.state_dict().items()}))
    assert torch.equal(conv.bias, torch.ones(1))


def test_file_of_resampled_weights_is_named_as_nnunet_names_files(tmp_path, capsys):
    path = checkpoint(tmp_path, network(64, 64).state_dict())
    load(network(96, 128), path)
    assert f"Loading pretrained weights from file  {path}" in capsys.readouterr().out


class Log:
    """As a trainer has one."""

    def __init__(self):
        self.lines = []

    def add(self, line):
        self.lines.append(line)


@pytest.fixture
def as_nnunet_has_it(monkeypatch):
    monkeypatch.setattr(run_training, "load_pretrained_weights", nnunets_own)


@pytest.mark.feature("Fine-tuning", "a user's function of nnU-Net's name stays")
def test_nnunet_loads_with_the_log_of_the_latest_trainer(as_nnunet_has_it, tmp_path):
    first, second = Log(), Log()
    replace_loader(first.add)
    replace_loader(second.add)
    run_training.load_pretrained_weights(network(96, 128), checkpoint(tmp_path, network(64, 64).state_dict()))
    assert first.lines == [] and "resampled 15 spectral gates" in second.lines[0]


@pytest.mark.feature("Fine-tuning", "a user's function of nnU-Net's name stays")
def test_log_of_a_trainer_does_not_keep_it_alive(as_nnunet_has_it, tmp_path, capsys):
    log = Log()
    gone = weakref.ref(log)
    replace_loader(log.add)
    del log
    gc.collect()
    assert gone() is None
    run_training.load_pretrained_weights(network(96, 128), checkpoint(tmp_path, network(64, 64).state_dict()))
    assert "resampled 15 spectral gates" in capsys.readouterr().out


@pytest.mark.feature("Fine-tuning", "a user's function of nnU-Net's name stays")
def test_function_that_another_plugin_has_put_in_nnunets_place_stays(monkeypatch):
    def theirs(network, fname, verbose=False):
        """Another plugin's."""

    monkeypatch.setattr(run_training, "load_pretrained_weights", theirs)
    replace_loader(Log().add)
    assert run_training.load_pretrained_weights is theirs


@pytest.fixture
def script(as_nnunet_has_it, monkeypatch):
    """The module of the program that runs."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    return sys.modules["__main__"]


@pytest.mark.feature("Fine-tuning", "a user's function of nnU-Net's name stays")
def test_function_of_the_same_name_in_a_users_script_stays(script):
    script.load_pretrained_weights = mine = lambda model, path: "mine"
    replace_loader(Log().add)
    assert script.load_pretrained_weights is mine
    assert run_training.load_pretrained_weights.func is load_pretrained_weights


def test_function_of_nnunets_module_run_as_a_program_is_replaced(script):
    script.load_pretrained_weights = nnunets_own
    replace_loader(Log().add)
    assert script.load_pretrained_weights.func is load_pretrained_weights

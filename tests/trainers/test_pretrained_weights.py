"""`-pretrained_weights` from another patch size; test_planned_training.py runs nnU-Net's commands with them."""

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
    """Load weights as nnU-Net does, and return the logged lines."""
    lines = []
    load_pretrained_weights(network, path, log=lines.append)
    return lines


def without_heads(weights):
    return {name: tensor for name, tensor in weights.items() if ".seg_layers." not in name}


@pytest.mark.feature("Fine-tuning", "the same under torch.compile; weights of other networks are refused")
@pytest.mark.parametrize("wrap", [lambda network: network, torch.compile], ids=["bare", "compiled"])
def test_pretrained_weights_of_another_patch_size_are_resampled(tmp_path, wrap):
    small, large = network(64, 64), network(96, 128)
    (line,) = load(wrap(large), checkpoint(tmp_path, small.state_dict()))
    assert "resampled 15 spectral gates" in line and "1 from 64×64 to 96×128" in line
    expected = without_heads(resample_spectral_gates(small.state_dict(), large))
    loaded = large.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.feature("Fine-tuning", "the same under torch.compile; weights of other networks are refused")
def test_pretrained_weights_of_the_same_patch_size_are_loaded_bit_for_bit(tmp_path):
    source, target = network(64, 64), network(64, 64)
    assert load(target, checkpoint(tmp_path, source.state_dict())) == []
    loaded = target.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in without_heads(source.state_dict()).items())


@pytest.mark.feature("Fine-tuning", "the same under torch.compile; weights of other networks are refused")
def test_pretrained_weights_of_another_network_are_refused(tmp_path):
    path = checkpoint(tmp_path, MambaMIS(1, 2, (96, 96), variant="B", d_state=4).state_dict())
    with pytest.raises(SystemExit, match="does not fit this MambaMIS: it has no encoder"):
        load(MambaMIS(1, 2, (64, 64), variant="L", d_state=4), path)
    conv = nn.Conv2d(1, 1, 3)
    load(conv, checkpoint(tmp_path, {name: torch.ones_like(tensor) for name, tensor in conv.state_dict().items()}))
    assert torch.equal(conv.bias, torch.ones(1))


def test_nnunet_prints_the_path_of_resampled_weights(tmp_path, capsys):
    path = checkpoint(tmp_path, network(64, 64).state_dict())
    load(network(96, 128), path)
    assert f"Loading pretrained weights from file  {path}" in capsys.readouterr().out


class Log:
    """A log like a trainer's."""

    def __init__(self):
        self.lines = []

    def add(self, line):
        self.lines.append(line)


@pytest.fixture
def nnunets_loader(monkeypatch):
    monkeypatch.setattr(run_training, "load_pretrained_weights", nnunets_own)


@pytest.mark.feature("Fine-tuning", "a user's function of the same name is left alone")
def test_loading_logs_to_the_latest_trainer(nnunets_loader, tmp_path):
    first, second = Log(), Log()
    replace_loader(first.add)
    replace_loader(second.add)
    run_training.load_pretrained_weights(network(96, 128), checkpoint(tmp_path, network(64, 64).state_dict()))
    assert first.lines == [] and "resampled 15 spectral gates" in second.lines[0]


@pytest.mark.feature("Fine-tuning", "a user's function of the same name is left alone")
def test_log_of_a_trainer_does_not_keep_it_alive(nnunets_loader, tmp_path, capsys):
    log = Log()
    gone = weakref.ref(log)
    replace_loader(log.add)
    del log
    gc.collect()
    assert gone() is None
    run_training.load_pretrained_weights(network(96, 128), checkpoint(tmp_path, network(64, 64).state_dict()))
    assert "resampled 15 spectral gates" in capsys.readouterr().out


@pytest.mark.feature("Fine-tuning", "a user's function of the same name is left alone")
def test_replacement_by_another_plugin_is_left_alone(monkeypatch):
    def theirs(network, fname, verbose=False):
        """The replacement by another plugin."""

    monkeypatch.setattr(run_training, "load_pretrained_weights", theirs)
    replace_loader(Log().add)
    assert run_training.load_pretrained_weights is theirs


@pytest.fixture
def script(nnunets_loader, monkeypatch):
    """An empty module that replaces `__main__`, the module of the running program."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    return sys.modules["__main__"]


@pytest.mark.feature("Fine-tuning", "a user's function of the same name is left alone")
def test_function_of_the_same_name_in_a_users_script_is_left_alone(script):
    script.load_pretrained_weights = mine = lambda model, path: "mine"
    replace_loader(Log().add)
    assert script.load_pretrained_weights is mine
    assert run_training.load_pretrained_weights.func is load_pretrained_weights


def test_loader_is_replaced_if_nnunets_module_runs_as_a_program(script):
    script.load_pretrained_weights = nnunets_own
    replace_loader(Log().add)
    assert script.load_pretrained_weights.func is load_pretrained_weights

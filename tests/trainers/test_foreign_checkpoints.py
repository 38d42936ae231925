"""Checkpoints that are damaged, come from other trainers, or hold code."""

from __future__ import annotations

import functools
import os
import random
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_mamba_mis.cli.main import main as mamba_mis
from nnunet_mamba_mis.nnunet.checkpoint import Training, read_checkpoint
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.utils.errors import UserError
from support.trainer_in_process import FEW_WEIGHTS, make_trainer


class Small(nnUNetTrainerMambaMIS, nnUNetTrainerNoDA):
    architecture: ClassVar = FEW_WEIGHTS
    epochs, iterations_per_epoch, validation_iterations_per_epoch = 1, 1, 1
    ema_decay = 0.9


class WithSGD(Small):
    def configure_optimizers(self):
        return nnUNetTrainer.configure_optimizers(self)


class Code:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def start(in_this_process):
    """Return a function that makes a trainer and loads a checkpoint or weights, as nnU-Net's command does."""

    def start(trainer: type = Small, continued: bool = False, **arguments):
        made = make_trainer(trainer, in_this_process, continued)
        run_training.maybe_load_checkpoint(made, continued, False, **arguments)
        return made

    return start


@pytest.fixture
def saved(start) -> Path:
    """A checkpoint from the middle of the only epoch."""
    trainer = start()
    trainer.initialize()
    loss = np.array(0.5, np.float32)
    trainer.train_outputs = [{"loss": loss}]
    trainer.logger.log("lrs", np.float64(1e-3), 0)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer._save_latest()
    return path


def set_value(checkpoint: dict, keys: tuple, value: object) -> None:
    *outer, last = keys
    target = functools.reduce(lambda inner, key: inner[key], outer, checkpoint)
    if value is KeyError:
        del target[last]
    else:
        target[last] = value


RESUME = ("optimizer_state", "resume", 0)
OWN = ("optimizer_state", "average", "own_weights")


@pytest.mark.feature("Resuming", "full disk, unreadable checkpoint: one message, nothing lost")
@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("network_weights",), [1, 2], "network_weights"),
        (("network_weights", "more"), 3, "network_weights"),
        (("network_weights", "more\x1b[31m"), torch.zeros(1), "more"),
        (("optimizer_state",), None, "optimizer_state"),
        (("optimizer_state", "param_groups"), [], "parameter group"),
        (("optimizer_state", "param_groups", 0, "params"), "abc", "Small"),
        (("optimizer_state", "param_groups", 0, "betas"), KeyError, "betas"),
        (("optimizer_state", "param_groups", 0, "weight_decay"), "low", "weight_decay"),
        (("optimizer_state", "state", 0), {"step": "third"}, "optimizer_state"),
        (("optimizer_state", "resume"), "here", "resume"),
        (RESUME, [], "resume"),
        ((*RESUME, "random_state"), KeyError, "random_state"),
        ((*RESUME, "random_state", "torch"), "1234", "random_state"),
        ((*RESUME, "train_outputs"), [{"loss": "low"}], "train_outputs"),
        ((*RESUME, "val_outputs"), 3, "val_outputs"),
        ((*RESUME, "skipped_steps"), "many", "skipped_steps"),
        (("grad_scaler_state",), "scale", "grad_scaler_state"),
        (("logging",), {}, "mean_fg_dice"),
        (("logging", "lrs"), ["fast"], "logging"),
        (("current_epoch",), "3", "current_epoch"),
        (("current_epoch",), -1, "current_epoch"),
        (("current_epoch",), 9, "lrs"),
        (("_best_ema",), "best", "_best_ema"),
        (("init_args",), None, "init_args"),
        (("trainer_name",), 5, "trainer_name"),
        (("trainer_name",), torch.zeros(2, 2), "trainer_name"),
        (("trainer_name",), KeyError, "trainer_name"),
        (("optimizer_state", "network"), 1, "optimizer_state.network"),
        (("optimizer_state", "average"), 1, "optimizer_state.average"),
        (("optimizer_state", "average", "steps"), -1, "average.steps"),
        (OWN, {}, "average.own_weights"),
        ((*OWN, "decoder.seg_layers.0.bias"), torch.zeros(9), "average.own_weights .*seg_layers.0.bias"),
        (("inference_allowed_mirroring_axes",), "xy", "inference_allowed_mirroring_axes"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_value_in_a_checkpoint_is_named(start, saved, keys, value, named):
    checkpoint = torch.load(saved, weights_only=False)
    set_value(checkpoint, keys, value)
    torch.save(checkpoint, saved)
    before = saved.read_bytes()
    with pytest.raises(SystemExit, match=f"(?s)checkpoint_latest.pth .*{named}") as stopped:
        start(continued=True)
    assert stopped.value.code.isprintable() and saved.read_bytes() == before


def test_valid_checkpoint_resumes(start, saved):
    trainer = start(continued=True)
    assert [float(output["loss"]) for output in trainer.train_outputs] == [0.5]
    assert trainer.is_continued and trainer.random_state is not None


def test_checkpoint_of_an_unfused_adamw_resumes_fused(start, saved):
    checkpoint = torch.load(saved, weights_only=False)
    for group in checkpoint["optimizer_state"]["param_groups"]:
        group["fused"] = None
    torch.save(checkpoint, saved)
    trainer = start(continued=True)
    assert [group["fused"] for group in trainer.optimizer.param_groups] == [True, True]


def test_checkpoint_of_another_optimizer_is_named(start, saved):
    other = start(WithSGD)
    other.initialize()
    other.save_checkpoint(str(saved))
    with pytest.raises(SystemExit, match=r"checkpoint_latest.pth .*(AdamW|parameter group)"):
        start(continued=True)


@pytest.mark.feature("Fine-tuning", "no code in an untrusted file is run")
@pytest.mark.parametrize("keys", [("init_args", "fold"), ("logging", "lrs"), ("network_weights", "more")], ids=str)
@pytest.mark.parametrize("way", ["--c", "-pretrained_weights", "export"])
def test_code_in_a_checkpoint_is_not_run(start, saved, in_this_process, tmp_path, capsys, way, keys):
    checkpoint = torch.load(saved, weights_only=False)
    set_value(checkpoint, keys, Code(tmp_path / "run"))
    torch.save(checkpoint, saved)
    if way == "export":
        model = saved.parent.parent
        shutil.copy(in_this_process / "nnUNetPlans.json", model / "plans.json")
        shutil.copy(in_this_process / "dataset.json", model)
        arguments = ["export", "-m", str(model), "-f", "0", "-chk", saved.name, "-o", str(tmp_path / "out")]
        assert mamba_mis([*arguments, "--format", "pt2"]) == 1
        message = capsys.readouterr().err
    else:
        arguments = {"continued": True} if way == "--c" else {"pretrained_weights_file": str(saved)}
        with pytest.raises(SystemExit) as stopped:
            start(**arguments)
        message = stopped.value.code
    assert saved.name in message and "mkdir" in message
    assert not (tmp_path / "run").exists()
    torch.load(saved, weights_only=False)  # nnU-Net loads it in this way, which runs the code
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("trainer", [nnUNetTrainer, Small], ids=["stock", "ours"])
def test_checkpoints_hold_only_what_may_be_read(in_this_process, tmp_path, trainer):
    made = make_trainer(trainer, in_this_process)
    made.initialize()
    for name in made.logger.get_checkpoint():
        values = [np.float32(0.5), np.float64(0.25)]
        made.logger.log(name, values if name == "dice_per_class_or_region" else values[0], 0)
    made._best_ema = np.float64(0.5)
    path = tmp_path / "checkpoint.pth"
    made.save_checkpoint(str(path))
    read = read_checkpoint(path, Training)
    assert read.best_ema == 0.5 and read.logging == torch.load(path, weights_only=False)["logging"]


@pytest.mark.feature("Fine-tuning", "no code in an untrusted file is run")
def test_unusable_pretrained_weights_are_one_line(start, saved, tmp_path):
    checkpoint = torch.load(saved, weights_only=False)
    name = next(iter(checkpoint["network_weights"]))
    checkpoint["network_weights"][name] = torch.zeros(1)
    wrong = [(weights, "network_weights") for weights in ([], {1: torch.ones(1)})]
    for weights, problem in [(checkpoint["network_weights"], name), ({}, "has no"), *wrong]:
        torch.save({"network_weights": weights}, tmp_path / "given.pth")
        with pytest.raises(SystemExit, match=f"given.pth .*{problem}") as stopped:
            start(pretrained_weights_file=str(tmp_path / "given.pth"))
        assert "\n" not in stopped.value.code
    with pytest.raises(SystemExit, match=r"absent\.pth"):
        start(pretrained_weights_file=str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("name", ["TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_torchs_environment_variables_are_restored(start, saved, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    assert start(continued=True).is_continued
    assert dict(os.environ) == before


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_mutated_checkpoints_load_or_are_named(tmp_path):
    values = {name: torch.zeros(3) for name in "abc"} | {"d": np.float64(1), "e": [1, "x"]}
    for new_format in (True, False):
        torch.save(values, tmp_path / "whole.pth", _use_new_zipfile_serialization=new_format)
        whole, mutations = (tmp_path / "whole.pth").read_bytes(), random.Random(0)
        path = tmp_path / "mutated.pth"
        for _ in range(150):
            mutated = bytearray(whole)
            for _ in range(mutations.randint(1, 4)):
                mutated[mutations.randrange(len(mutated))] = mutations.randrange(256)
            path.write_bytes(mutated[: mutations.choice([None, mutations.randrange(len(mutated))])])
            try:
                assert isinstance(read_checkpoint(path, dict), dict)
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)

"""A run that is stopped at any moment and then resumed is equal to an uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS
from support.full_disk import full_disk
from support.nnunet_workplace import Dataset, Running, Workplace
from support.paths import PROGRAMS
from support.small_dataset import NUMBER, discs
from support.trainer_in_process import FEW_WEIGHTS, make_trainer
from support.waiting import children


@pytest.fixture(scope="module")
def dataset(nnunet) -> Dataset:
    """Discs, and trainers in a folder where nnU-Net finds them."""
    shutil.copy(PROGRAMS / "resumed_trainers.py", nnunet.root / "trainers")
    return discs(nnunet)


class Brief(nnUNetTrainerMambaMIS, nnUNetTrainerNoDA):
    """Train three tiny epochs without augmentation; send this process a signal at the given moment."""

    architecture: ClassVar = FEW_WEIGHTS
    epochs, iterations_per_epoch, validation_iterations_per_epoch = 3, 3, 2
    moment: tuple[str, int] = ("", 0)
    signals = (signal.SIGTERM,)

    def passed(self, name: str) -> None:
        self.count[name] += 1
        if (name, self.count[name]) == self.moment:
            for number in self.signals:
                signal.raise_signal(number)

    def train_step(self, batch):
        self.passed("train_step")
        return super().train_step(batch)

    def validation_step(self, batch):
        self.passed("validation_step")
        return super().validation_step(batch)

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.passed("on_train_epoch_start")

    def on_epoch_end(self):
        super().on_epoch_end()
        self.passed("on_epoch_end")

    def save_checkpoint(self, filename):
        self.passed("save_checkpoint")
        super().save_checkpoint(filename)

    def on_train_end(self):
        super().on_train_end()
        self.passed("on_train_end")


def make(preprocessed: Path, seed: int, continued: bool = False, **attributes) -> Brief:
    """Make a trainer as nnU-Net's command does, with random generators seeded with `seed`."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    trainer = make_trainer(type("Brief", (Brief,), attributes), preprocessed, continued)
    trainer.count = Counter()
    trainer.logger.plot_progress_png = lambda folder: None  # plotting takes longer than the epoch
    maybe_load_checkpoint(trainer, continued, False)
    return trainer


def final(trainer: Brief) -> dict:
    return torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)


def stop(trainer: Brief) -> int:
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    return stopped.value.code


def assert_equal(actual: dict, expected: dict) -> None:
    """Check that two checkpoints are equal in everything except times."""
    assert actual["network_weights"].keys() == expected["network_weights"].keys()
    for name, weight in actual["network_weights"].items():
        assert torch.equal(weight, expected["network_weights"][name]), name
    for index, state in actual["optimizer_state"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, expected["optimizer_state"]["state"][index][name])
    own_weights = actual["optimizer_state"].get("average", {}).get("own_weights", {})
    for name, weight in own_weights.items():
        assert torch.equal(weight, expected["optimizer_state"]["average"]["own_weights"][name]), name
    assert actual["optimizer_state"]["param_groups"] == expected["optimizer_state"]["param_groups"]
    assert (actual["current_epoch"], actual["_best_ema"]) == (expected["current_epoch"], expected["_best_ema"])
    for name, values in actual["logging"].items():
        assert len(values) == len(expected["logging"][name])
        assert "timestamps" in name or values == expected["logging"][name], name


# method and number of its call since the last resume; an epoch has three training steps and two validation steps
MOMENTS = [
    ("on_train_epoch_start", 1),  # before the first step
    ("train_step", 1),
    ("train_step", 2),  # the last of an epoch
    ("validation_step", 1),
    ("validation_step", 1),  # the last of an epoch
    ("save_checkpoint", 1),
    ("train_step", 2),
    ("on_epoch_end", 1),  # of the last epoch
    ("on_train_end", 1),
]


RECIPE = {"muon": True, "ema_decay": 0.3, "warmup_epochs": 1, "schedule": "cosine", "clip_norm": 1}


@pytest.mark.feature("Resuming", "SIGTERM at any moment; `--c` gives the same weights, bit for bit")
@pytest.mark.slow
@pytest.mark.parametrize("recipe", [{}, RECIPE], ids=["default", "recipe"])
def test_run_stopped_at_many_moments_equals_an_uninterrupted_one(in_this_process, tmp_path, monkeypatch, recipe):
    uninterrupted = make(in_this_process, seed=1, **recipe)
    uninterrupted.run_training()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "stopped"))
    steps = Counter()
    for index, moment in enumerate(MOMENTS):
        trainer = make(in_this_process, seed=1 + index, continued=index > 0, moment=moment, **recipe)
        assert stop(trainer) == 128 + signal.SIGTERM, moment
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        steps += trainer.count
    trainer = make(in_this_process, seed=99, continued=True, **recipe)
    trainer.run_training()
    assert ("average" in final(trainer)["optimizer_state"]) == bool(recipe)
    assert_equal(final(trainer), final(uninterrupted))
    assert (steps["train_step"], steps["validation_step"]) == (3 * 3, 3 * 2)
    assert not list(Path(trainer.output_folder).glob("*.partial"))


@pytest.mark.feature("Resuming", "Ctrl-C once, twice, or while a checkpoint is written; nohup")
def test_ctrl_c_leaves_a_checkpoint_and_one_line(in_this_process, capsys):
    trainer = make(in_this_process, seed=1, moment=("train_step", 2), signals=(signal.SIGINT,))
    assert stop(trainer) == 128 + signal.SIGINT
    assert re.search("SIGINT .*epoch 0 .*2 of 3 .*--c", capsys.readouterr().out)
    assert (Path(trainer.output_folder) / "checkpoint_latest.pth").exists()


@pytest.mark.feature("Resuming", "Ctrl-C once, twice, or while a checkpoint is written; nohup")
def test_several_sigterms_act_as_one(in_this_process):
    trainer = make(in_this_process, seed=1, moment=("train_step", 1), signals=(signal.SIGTERM,) * 3)
    assert stop(trainer) == 128 + signal.SIGTERM
    assert (Path(trainer.output_folder) / "checkpoint_latest.pth").exists()


class Torn:
    """An object that sends this process a signal, or fails, while torch writes it."""

    def __init__(self, number: int = 0):
        self.number = number

    def __reduce__(self):
        if self.number:
            signal.raise_signal(self.number)
        else:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return set, ()


@pytest.mark.feature("Resuming", "Ctrl-C once, twice, or while a checkpoint is written; nohup")
def test_second_ctrl_c_waits_until_the_checkpoint_is_written(in_this_process, capsys):
    trainer = make(in_this_process, seed=1, moment=("train_step", 2), signals=(signal.SIGINT,))
    trainer.my_init_kwargs["torn"] = Torn(signal.SIGINT)
    assert stop(trainer) == 128 + signal.SIGINT
    assert re.search("SIGINT .*epoch 0 .*2 of 3", capsys.readouterr().out)
    assert len(make(in_this_process, seed=1, continued=True).train_outputs) == 2


@pytest.mark.feature("Resuming", "full disk, unreadable checkpoint: one message, nothing lost")
def test_other_errors_are_not_reported_as_disk_errors(in_this_process):
    trainer = make(in_this_process, seed=1, moment=("train_step", 2))
    trainer.my_init_kwargs["torn"] = Torn()
    with pytest.raises(RuntimeError, match="CUDA error"):
        trainer.run_training()


@pytest.mark.feature("Resuming", "full disk, unreadable checkpoint: one message, nothing lost")
def test_full_disk_leaves_the_previous_checkpoint(in_this_process):
    trainer = make(in_this_process, seed=1)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()
    with full_disk(len(before) // 2), pytest.raises(SystemExit, match=r"checkpoint_latest.pth could not be written"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob("checkpoint*")] == ["checkpoint_latest.pth"]


@pytest.mark.feature("Resuming", "full disk, unreadable checkpoint: one message, nothing lost")
@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "cannot be read"), (b"PK\x03\x04 cut off", "cannot be read"), (None, "trainer_name")],
    ids=["empty", "cut off", "weights alone"],
)
def test_unusable_checkpoint_is_named(in_this_process, content, problem):
    path = Path(make(in_this_process, seed=1).output_folder) / "checkpoint_latest.pth"
    if content is None:
        torch.save({"network_weights": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"checkpoint_latest.pth .*{problem}"):
        make(in_this_process, seed=1, continued=True)


@pytest.mark.feature("Resuming", "Checkpoints in torch's format before 1.6")
def test_checkpoint_in_the_format_before_torch_1_6_resumes(in_this_process):
    trainer = make(in_this_process, seed=1, moment=("train_step", 2))
    stop(trainer)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    assert len(make(in_this_process, seed=1, continued=True).train_outputs) == 2


@pytest.mark.feature("Resuming", "a new run sets earlier checkpoints aside")
def test_checkpoints_of_an_earlier_run_are_set_aside(in_this_process):
    trainer = make(in_this_process, seed=1, moment=("train_step", 1))
    folder = Path(trainer.output_folder)
    (folder / "checkpoint_final.pth").write_bytes(b"earlier")
    (folder / "checkpoint_final_previous_1.pth").write_bytes(b"still earlier")
    (folder / "checkpoint_best.pth.partial").write_bytes(b"killed")
    stop(trainer)
    assert (folder / "checkpoint_final_previous_1.pth").read_bytes() == b"still earlier"
    assert (folder / "checkpoint_final_previous_2.pth").read_bytes() == b"earlier"
    # so --c resumes this run
    assert make(in_this_process, seed=1, continued=True).train_outputs
    assert {file.name for file in folder.glob("checkpoint*")} == {
        "checkpoint_final_previous_1.pth",
        "checkpoint_final_previous_2.pth",
        "checkpoint_latest.pth",
    }


def start(nnunet: Workplace, trainer: str, *arguments: object, **variables: str) -> Running:
    return nnunet.start("nnUNetv2_train", NUMBER, "2d", 0, "-tr", trainer, "-device", "cpu", *arguments, **variables)


@pytest.fixture(scope="module")
def stopped_and_killed(dataset, nnunet) -> tuple[Path, list[str]]:
    """Stop a run with SIGTERM, resume it, kill it with SIGKILL, resume it; return its folder and outputs."""
    moments = random.Random(6)
    printed = []
    for arguments, epoch, number, status in (
        ([], 1, signal.SIGTERM, 128 + signal.SIGTERM),
        (["--c"], 3, signal.SIGKILL, -signal.SIGKILL),
    ):
        training = start(nnunet, "Interrupted", *arguments)
        training.wait_for(f"Epoch {epoch}")
        delay = moments.uniform(0, 0.5)
        time.sleep(delay)
        os.kill(training.process.pid, number)
        printed.append(training.end(status))
        print(f"{signal.Signals(number).name} {delay:.3f} s after epoch {epoch} began")
        if number == signal.SIGTERM:
            images, output = nnunet.raw / dataset.name / "imagesTr", nnunet.root / "interrupted"
            nnunet.predict(dataset.number, "Interrupted", images, output, "-f", 0, "-chk", "checkpoint_latest.pth")
            assert len(list(output.glob("*.png"))) == len(dataset.cases)
    printed.append(start(nnunet, "Interrupted", "--c").end())
    return nnunet.model(NUMBER, "Interrupted") / "fold_0", printed


@pytest.mark.feature("Resuming", "SIGTERM and SIGKILL at random moments to the real command")
@pytest.mark.slow
def test_run_stopped_and_killed_at_random_moments_equals_an_uninterrupted_one(stopped_and_killed, nnunet):
    folder, _ = stopped_and_killed
    start(nnunet, "Uninterrupted").end()
    other = nnunet.model(NUMBER, "Uninterrupted") / "fold_0"
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        assert_equal(*(torch.load(path / name, weights_only=False) for path in (folder, other)))
    assert {file.name for file in folder.glob("checkpoint*")} == {"checkpoint_final.pth", "checkpoint_best.pth"}
    assert (folder / "validation" / "summary.json").exists()


@pytest.mark.feature("Commands", "`nnUNetv2_train --c`: a killed run")
@pytest.mark.feature("Resuming", "SIGKILL loses no finished epoch")
@pytest.mark.slow
def test_killed_run_loses_no_finished_epoch(stopped_and_killed):
    _, (_, killed, continued) = stopped_and_killed
    ended = [int(epoch) for epoch in re.findall(r"Epoch (\d+)\b", killed)][-1]
    assert int(re.search(r"Epoch (\d+)\b", continued)[1]) == ended


@pytest.mark.feature("Resuming", "A signal in the final validation")
@pytest.mark.slow
def test_signal_in_the_final_validation_ends_it_and_loses_nothing(stopped_and_killed, nnunet):
    folder, _ = stopped_and_killed
    before = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    validation = start(nnunet, "Interrupted", "--val")
    validation.wait_for("predicting")
    os.kill(validation.process.pid, signal.SIGTERM)
    validation.end(-signal.SIGTERM)
    assert_equal(torch.load(folder / "checkpoint_final.pth", weights_only=False), before)


@pytest.mark.feature("Resuming", "Data loader workers get the signal too")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_checkpoint_is_written_even_if_workers_get_the_signal(dataset, nnunet, number):
    """A cluster signals all processes of a job, and Ctrl-C all those of a terminal."""
    training = start(nnunet, "WithWorkers", nnUNet_n_proc_DA="2")
    training.wait_for("Epoch 1")
    pid = training.process.pid
    workers = children(pid)
    assert len(workers) >= 3
    for process in [*workers, pid]:
        os.kill(process, number)
    began = time.monotonic()
    output = training.end(128 + number)
    assert time.monotonic() - began < 60
    assert re.search(f"{number.name} .*--c", output)
    assert (nnunet.model(NUMBER, "WithWorkers") / "fold_0" / "checkpoint_latest.pth").exists()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.feature("Resuming", "A second process on the same fold changes nothing")
@pytest.mark.slow
def test_second_run_on_a_fold_changes_nothing_and_the_first_continues(dataset, nnunet):
    first = start(nnunet, "Locked", nnUNet_n_proc_DA="2")
    first.wait_for("Epoch 1")
    folder = nnunet.model(NUMBER, "Locked") / "fold_0"
    os.kill(first.process.pid, signal.SIGSTOP)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for arguments in ([], ["--c"], ["--val"]):
        output = start(nnunet, "Locked", *arguments).end(status=1)
        assert "training.lock" in output and "Traceback" not in output
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    # workers of the first run outlive it, but do not hold the lock
    workers = children(first.process.pid)
    os.kill(first.process.pid, signal.SIGKILL)
    first.end(-signal.SIGKILL)
    continued = start(nnunet, "Locked", "--c")
    continued.wait_for("Epoch")
    os.kill(continued.process.pid, signal.SIGTERM)
    continued.end(128 + signal.SIGTERM)
    assert workers
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)

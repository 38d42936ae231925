"""Training in several processes: nnU-Net's `-num_gpus`, with gloo if there are no GPUs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from nnunetv2.run import run_training
from torch import nn

from nnunet_mamba_mis import trainers
from nnunet_mamba_mis.trainers.fold_lock import LOCK, lock_fold
from support import small_dataset
from support.ddp_on_cpu import (
    OnCPU,
    Processes,
    batch_for,
    continue_training,
    gradients,
    make,
    replace_what_needs_a_gpu,
    shares,
    start_num_gpus_2,
    train,
)
from support.nnunet_workplace import Dataset, kill_group
from support.paths import PROGRAMS
from support.waiting import children, runs, wait_until

NETWORKS = ["nnUNetTrainerMambaMIS", *(f"nnUNetTrainerMambaMIS_{name}" for name in ("S", "L", "conv", "paper"))]
NETWORKS += trainers.ABLATIONS


@pytest.fixture(scope="module")
def discs(nnunet) -> Dataset:
    return small_dataset.discs(nnunet)


@pytest.fixture(scope="module")
def variables(discs, nnunet) -> dict[str, str]:
    shutil.copy(PROGRAMS / "distributed_trainers.py", nnunet.root / "trainers")
    return nnunet.variables | {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}


@pytest.fixture
def group(in_this_process, tmp_path, monkeypatch):
    """Make this process a process group of one, so its trainers are distributed; return the preprocessed dataset."""
    for module, name in ((run_training, "setup_ddp"), (torch.cuda, "set_device"), (run_training, "cleanup_ddp")):
        monkeypatch.setattr(module, name, getattr(module, name))
    replace_what_needs_a_gpu(tmp_path / "rendezvous")
    run_training.setup_ddp(0, 1)
    yield in_this_process
    dist.destroy_process_group()


@pytest.mark.feature("Processes", "every parameter of every network gets a gradient, as DDP requires")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient_as_ddp_requires(group, monkeypatch, name):
    if name.endswith("_cnn"):
        # nnU-Net converts its BatchNorm into SyncBatchNorm, which only GPUs have
        monkeypatch.setattr(nn.SyncBatchNorm, "convert_sync_batchnorm", lambda network: network)
    if name.endswith("_paper"):
        monkeypatch.setattr(trainers.nnUNetTrainerMambaMIS_paper, "recipe_batch_size", 1)
    patch_size = 256 if name.endswith("_paper") else 32
    trainer = make(group, getattr(trainers, name), patch_size)
    trainer.initialize()
    assert isinstance(trainer.network, nn.parallel.DistributedDataParallel)
    batch = batch_for(trainer, trainer.batch_size)
    for _ in range(2):  # DDP raises in the step after a missing gradient
        trainer.train_step(batch)
    without = [name for name, parameter in trainer.network.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.feature("Processes", "every parameter of every network gets a gradient, as DDP requires")
def test_lowest_output_has_a_weight_even_in_compiled_training(group):
    """nnU-Net sets this weight to 0 in compiled training, where the output's parameters get a gradient nevertheless."""
    trainer = make(group, OnCPU)
    trainer._do_i_compile = lambda: True
    assert all(weight > 0 for weight in trainer._build_loss().weight_factors)


@pytest.mark.feature("Processes", "Two processes have the gradients of one with the joint batch")
def test_gradients_of_two_processes_equal_those_of_one_with_the_joint_batch(in_this_process, variables, tmp_path):
    trainer = make(in_this_process, OnCPU, batch_size=4)
    trainer.initialize()
    assert trainer.configuration_manager.batch_dice
    batch = batch_for(trainer, 4)
    torch.save({"weights": trainer.network.state_dict(), "batch": batch}, tmp_path / "start.pt")
    (weights, first), (_, second) = Processes(variables, gradients, in_this_process, tmp_path / "start.pt").end()

    trainer.loss.weight_factors = weights  # with one process the lowest output has no weight
    trainer.loss(trainer.network(batch["data"]), batch["target"]).backward()
    for name, parameter in trainer.network.named_parameters():
        assert torch.equal(first[name], second[name]), name
        # the precision of float32, in which nnU-Net's Dice always sums
        error, largest = (first[name] - parameter.grad).abs().max(), parameter.grad.abs().max()
        assert error < 5e-4 * largest + 1e-8, name


@pytest.mark.feature("Processes", "Equal shares of the batch, even in the paper's recipe")
@pytest.mark.parametrize(
    ("name", "planned", "expected"),
    [
        ("nnUNetTrainerMambaMIS_S", 6, [(3, 0.0), (3, 2 / 3)]),
        ("nnUNetTrainerMambaMIS_S", 5, [(3, 0.0), (3, 2 / 3)]),  # equal shares, rounded up
        ("nnUNetTrainerMambaMIS_paper", 2, [(16, 0.0), (16, 11 / 16)]),  # 32 images, regardless of the plans
    ],
    ids=["even", "odd", "paper"],
)
def test_batch_is_split_into_equal_shares(discs, nnunet, variables, name, planned, expected):
    assert Processes(variables, shares, nnunet.preprocessed / discs.name, name, planned).end() == expected


@pytest.mark.feature("Processes", "Equal shares of the batch, even in the paper's recipe")
def test_batch_smaller_than_the_number_of_processes_is_refused(discs, nnunet, variables):
    preprocessed = nnunet.preprocessed / discs.name
    refused = Processes(variables, shares, preprocessed, "nnUNetTrainerMambaMIS_S", 1)
    refused.end(status=1)
    assert "-num_gpus 1" in refused.all[1].output()


@pytest.fixture(scope="module")
def trained(discs, nnunet, variables) -> Path:
    """Train in two processes with nnU-Net's `run_ddp`; return the fold's folder."""
    Processes(variables, train, discs.number, "TwoProcesses").end()
    return nnunet.model(discs.number, "TwoProcesses") / "fold_0"


@pytest.mark.feature("Processes", "what each process of `-num_gpus 2` runs, with gloo on CPUs")
@pytest.mark.slow
def test_training_in_two_processes_trains_and_validates(trained):
    checkpoint = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 3 and len(checkpoint["logging"]["train_losses"]) == 3
    assert not any(name.startswith("module.") for name in checkpoint["network_weights"])
    summary = json.loads((trained / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    assert len(list(trained.glob("training_log_*.txt"))) == 1  # only the first process writes one


@pytest.mark.feature("Processes", "what each process of `-num_gpus 2` runs, with gloo on CPUs")
@pytest.mark.slow
def test_model_trained_in_two_processes_predicts(trained, discs, nnunet):
    images, output = nnunet.raw / discs.name / "imagesTr", nnunet.root / "by two"
    nnunet.predict(discs.number, "TwoProcesses", images, output, "-f", 0)
    assert len(list(output.glob("*.png"))) == len(discs.cases)


@pytest.mark.feature("Processes", "a signal to one process stops all; `--c` loses nothing")
@pytest.mark.slow
def test_signal_to_one_process_stops_all_and_resume_is_exact(trained, discs, nnunet, variables):
    training = Processes(variables, train, discs.number, "TwoStopped")
    first, second = training.all
    first.wait_for("Epoch 1")
    os.kill(second.process.pid, signal.SIGTERM)  # the first process writes the checkpoint
    training.end(128 + signal.SIGTERM)
    assert first.output().count("Stopped by SIGTERM in epoch") == 1
    assert "Stopped by" not in second.output()
    Processes(variables, continue_training, discs.number, "TwoStopped").end()
    continued, uninterrupted = (
        torch.load(folder / "checkpoint_final.pth", weights_only=False)
        for folder in (nnunet.model(discs.number, "TwoStopped") / "fold_0", trained)
    )
    assert continued["logging"]["val_losses"] == uninterrupted["logging"]["val_losses"]
    for name, weight in continued["network_weights"].items():
        assert torch.equal(weight, uninterrupted["network_weights"][name]), name


@pytest.mark.feature("Resuming", "A second process on the same fold changes nothing")
@pytest.mark.slow
def test_first_of_two_processes_refuses_a_fold_that_another_run_trains(discs, nnunet, variables):
    folder = nnunet.results / discs.name / "TwoLocked__nnUNetPlans__2d" / "fold_0"
    folder.mkdir(parents=True)
    lock = lock_fold(folder)
    refused = Processes(variables, train, discs.number, "TwoLocked")
    try:
        output = refused.all[0].end(1)
    finally:
        for running in refused.all:  # mp.spawn would end the second process
            kill_group(running.process)
    assert lock.lock_file in output and "Traceback" not in output
    assert [path.name for path in folder.iterdir()] == [LOCK]


@pytest.mark.feature("Processes", "SIGTERM to `-num_gpus 2` leaves a checkpoint and no process")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("signalled", "handler", "as_installed"),
    [
        ("command", signal.default_int_handler, True),
        ("command", signal.SIG_IGN, False),  # a shell's background job ignores Ctrl-C
        ("its processes", signal.default_int_handler, False),  # like the Slurm script
    ],
    ids=["command", "command in background", "its processes"],
)
def test_sigterm_with_num_gpus_leaves_a_checkpoint_and_no_process(
    discs, variables, tmp_path, signalled, handler, as_installed
):
    """`-num_gpus 2` uses torch's `mp.spawn`, which sends signals of its own to its processes."""
    variables = variables | {"nnUNet_results": str(tmp_path)}
    command = start_num_gpus_2(discs.number, "TwoLong", variables, tmp_path / "log", handler, as_installed)
    command.wait_for("Epoch 1")
    processes = children(command.process.pid)
    for pid in [command.process.pid] if signalled == "command" else processes:
        os.kill(pid, signal.SIGTERM)
    try:
        command.end(-signal.SIGTERM if signalled == "command" else 1)
        wait_until(lambda: not any(map(runs, processes)), 60, "the end of the processes")
    finally:
        kill_group(command.process)
    assert command.output().count("continue with --c") == 1, command.output()
    (checkpoint,) = tmp_path.rglob("checkpoint_latest.pth")
    assert len(torch.load(checkpoint, weights_only=False)["optimizer_state"]["resume"]) == 2


needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.feature("Processes", "one GPU: compiled training resumes; nccl (marked `gpu`)")
@pytest.mark.gpu
@needs_a_gpu
def test_compiled_training_on_a_gpu_stops_and_resumes(discs, nnunet):
    arguments = ["nnUNetv2_train", discs.number, "2d", 2, "-tr", "OnGPU", "-device", "cuda"]
    training = nnunet.start(*arguments, nnUNet_compile="true")
    training.wait_for("Epoch 1")
    os.kill(training.process.pid, signal.SIGTERM)
    output = training.end(128 + signal.SIGTERM)
    assert "Using torch.compile" in output and "continue with --c" in output
    stopped = int(re.findall(r"Stopped by SIGTERM in epoch (\d+)", output)[0])
    continued = nnunet.run(*arguments, "--c", nnUNet_compile="true")
    assert int(re.search(r"Epoch (\d+)\b", continued)[1]) == stopped
    assert_trained(nnunet.model(discs.number, "OnGPU") / "fold_2")


def assert_trained(fold: Path) -> None:
    assert (fold / "validation" / "summary.json").exists()
    weights = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["network_weights"]
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.feature("Processes", "one GPU: compiled training resumes; nccl (marked `gpu`)")
@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("name", ["nnUNetTrainerMambaMIS", "nnUNetTrainerMambaMIS_cnn"])
def test_nccl_on_one_gpu(discs, nnunet, variables, name):
    """nnU-Net's `run_ddp` in a group of one process: DDP, nccl and SyncBatchNorm are real."""
    function = "from nnunetv2.run.run_training import run_ddp; run_ddp"
    arguments = (0, str(discs.number), "2d", 3, name, "nnUNetPlans", False, False, False, None, False, False, 1)
    rendezvous = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(run_training.find_free_network_port())}
    command = [sys.executable, "-c", f"{function}{arguments}"]
    subprocess.run(command, env=variables | rendezvous, check=True, timeout=300)
    assert_trained(nnunet.model(discs.number, name) / "fold_3")


@pytest.mark.feature("Processes", "`-num_gpus 2` on two GPUs (marked `gpu`, not run yet)")
@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["nnUNetTrainerMambaMIS", "nnUNetTrainerMambaMIS_cnn"])
def test_num_gpus_2(discs, nnunet, name):
    nnunet.run("nnUNetv2_train", discs.number, "2d", 1, "-tr", name, "-num_gpus", 2)
    assert_trained(nnunet.model(discs.number, name) / "fold_1")

"""Run nnU-Net's training in several processes on a machine without GPUs.

Only the parts that need a GPU are replaced: the nccl backend, the choice of a device, and DDP's `device_ids`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_mamba_mis import trainers
from support.nnunet_workplace import Running, kill_group
from support.paths import PROGRAMS, REPOSITORY
from support.trainer_in_process import make_trainer


class OnCPU(trainers.nnUNetTrainerMambaMIS):
    """A trainer that runs on CPUs even in several processes, for which nnU-Net's trainers assume one GPU each."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device=torch.device("cpu")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, torch.device("cpu"))
        self.device, self.grad_scaler = torch.device("cpu"), None
        self.logger.plot_progress_png = lambda folder: None  # plotting takes longer than the epoch


def replace_what_needs_a_gpu(rendezvous: Path) -> None:
    def join(rank: int, processes: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)

    run_training.setup_ddp = join
    torch.cuda.set_device = lambda device: None
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)


class Processes:
    """A function that runs in two processes, each with its own process group."""

    def __init__(self, variables: dict[str, str], function: Callable[..., Any], *arguments: object):
        self.folder = Path(tempfile.mkdtemp())
        self.all: list[Running] = []
        for rank in range(2):
            # forked from the process that has imported nnU-Net, if that process exists
            process = multiprocessing.get_context("forkserver").Process(
                target=_run, args=(rank, self.folder, variables, function, arguments)
            )
            process.start()
            self.all.append(Running(process, self.folder / f"{rank}.log"))

    def end(self, status: int = 0) -> list[Any]:
        """Wait for all processes to end, and return the function's result in each."""
        try:
            for running in self.all:
                running.end(status)
        finally:
            for running in self.all:
                kill_group(running.process)
        return [torch.load(path, weights_only=False) for path in sorted(self.folder.glob("*.pt"))]


def _run(rank: int, folder: Path, variables: dict, function: Callable, arguments: tuple) -> None:
    os.setpgrp()
    log = os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(variables)
    # processes that are started from here must not import pytest
    multiprocessing.set_start_method(None, force=True)
    # fork workers, as `nnunet_workplace` does
    multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")
    sys.modules["__main__"] = ModuleType("__main__")
    replace_what_needs_a_gpu(folder / "rendezvous")
    torch.save(function(rank, *arguments), folder / f"{rank}.pt")


def train(rank: int, dataset: int, trainer: str) -> None:
    """Run what `nnUNetv2_train DATASET 2d 0 -tr TRAINER -num_gpus 2` runs in each process."""
    run_training.run_ddp(
        rank, str(dataset), "2d", 0, trainer, "nnUNetPlans", False, False, False, None, False, False, 2
    )


def start_num_gpus_2(
    dataset: int, trainer: str, variables: dict[str, str], log: Path, on_sigint: Any, as_installed: bool
) -> Running:
    """Start `nnUNetv2_train DATASET 2d 0 -tr TRAINER -num_gpus 2`, which starts two processes through `mp.spawn`.

    Args:
        dataset: Number of the dataset.
        trainer: Name of the trainer.
        variables: Environment variables.
        log: File for the output.
        on_sigint: Handler of SIGINT (Ctrl-C) that the command inherits.
        as_installed: Whether each process starts afresh and imports nnU-Net, which takes ten seconds; otherwise, the
            processes are forked.
    """
    arguments = [str(dataset), trainer, str(log.parent / "rendezvous")]
    process = multiprocessing.get_context("forkserver").Process(
        target=_num_gpus_2, args=(arguments, variables, log, on_sigint, as_installed)
    )
    process.start()
    return Running(process, log)


def _num_gpus_2(arguments: list[str], variables: dict, log: Path, on_sigint: Any, as_installed: bool) -> None:
    os.setpgrp()
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, on_sigint)
    program = str(PROGRAMS / "num_gpus_on_cpu.py")
    if as_installed:
        path = os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
        variables = variables | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, program, *arguments], variables)
    os.environ.update(variables)
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def continue_training(rank: int, dataset: int, trainer: str) -> None:
    """Resume the run that `train` started, as `--c` does, without the final validation."""
    run_training.setup_ddp(rank, 2)
    continued = run_training.get_trainer_from_args(str(dataset), "2d", 0, trainer, continue_training=True)
    run_training.maybe_load_checkpoint(continued, True, False)
    continued.run_training()


def make(preprocessed: Path, trainer: type, patch_size: int = 32, batch_size: int = 2) -> OnCPU:
    """Return a trainer of the given class on this CPU."""
    on_cpu = trainer if issubclass(trainer, OnCPU) else type(trainer.__name__, (OnCPU, trainer), {})
    return make_trainer(on_cpu, preprocessed, patch_size=[patch_size] * 2, batch_size=batch_size)


def batch_for(trainer: OnCPU, images: int) -> dict:
    """Return random images, and labels in the sizes that the trainer's loss takes."""
    height, width = trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales() or [[1, 1]]
    labels = torch.rand(images, 1, height, width) > 0.7
    target = [nn.functional.interpolate(labels.float(), scale_factor=tuple(scale)).short() for scale in scales]
    return {"data": torch.rand(images, 1, height, width), "target": target if len(target) > 1 else target[0]}


def gradients(rank: int, preprocessed: Path, start: Path) -> tuple[tuple, dict[str, torch.Tensor]]:
    """Return the loss weights of the outputs, and the gradients, in one of two processes that share a batch."""
    run_training.setup_ddp(rank, 2)
    torch.manual_seed(rank)  # DDP copies the weights of the first process
    trainer = make(preprocessed, OnCPU, batch_size=4)
    trainer.initialize()
    state = torch.load(start)
    trainer.network.module.load_state_dict(state["weights"])
    mine = slice(rank * trainer.batch_size, (rank + 1) * trainer.batch_size)
    target = [labels[mine] for labels in state["batch"]["target"]]
    trainer.loss(trainer.network(state["batch"]["data"][mine]), target).backward()
    grads = {name: parameter.grad for name, parameter in trainer.network.module.named_parameters()}
    return trainer.loss.weight_factors, grads


def shares(rank: int, preprocessed: Path, name: str, batch_size: int) -> tuple[int, float]:
    """Return the images per step in this process, and the fraction of them with guaranteed foreground."""
    run_training.setup_ddp(rank, 2)
    patch_size = 256 if name.endswith("_paper") else 32
    trainer = make(preprocessed, getattr(trainers, name), patch_size, batch_size)
    trainer.initialize()
    return trainer.batch_size, trainer.oversample_foreground_percent

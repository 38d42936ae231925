"""nnU-Net's training in several processes, on a machine without GPUs.

Replaced is only what needs a GPU: the nccl backend, the choice of a device, and DDP's `device_ids`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch.nn.parallel import DistributedDataParallel

from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS


class OnCPU(nnUNetTrainerMambaMIS):
    """nnU-Net's trainers take it that processes have GPUs."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device=torch.device("cpu")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, torch.device("cpu"))
        self.device, self.grad_scaler = torch.device("cpu"), None


def replace_what_needs_a_gpu(rendezvous: Path) -> None:
    def join(rank: int, processes: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)

    run_training.setup_ddp = join
    torch.cuda.set_device = lambda device: None
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)


class Processes:
    """A function run in several processes with a group of their own."""

    def __init__(self, processes: int, variables: dict[str, str], function: Callable[..., Any], *arguments: object):
        self.folder = Path(tempfile.mkdtemp())
        self.all = [
            # forked from a process that has nnU-Net imported already, if there is one
            multiprocessing.get_context("forkserver").Process(
                target=_run, args=(rank, processes, self.folder, variables, function, arguments)
            )
            for rank in range(processes)
        ]
        for process in self.all:
            process.start()

    def output(self, rank: int = 0) -> str:
        log = self.folder / f"{rank}.log"
        return log.read_text() if log.exists() else ""

    def end(self, status: int = 0) -> list[Any]:
        """Wait for the end of all and return what the function returned in each."""
        deadline = time.monotonic() + 200
        for process in self.all:
            process.join(max(0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in self.all]
        self.kill()
        assert statuses == [status] * len(self.all), "\n".join(
            self.output(rank)[-3000:] for rank in range(len(self.all))
        )
        if status:
            return []
        return [torch.load(self.folder / f"{rank}.pt", weights_only=False) for rank in range(len(self.all))]

    def wait_for(self, line: str) -> None:
        """Wait until the first has printed this."""
        deadline = time.monotonic() + 200
        while line not in self.output():
            if not self.all[0].is_alive() or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(self.output()[-3000:])
            time.sleep(0.01)

    def kill(self) -> None:
        """End those that are left, and what they started."""
        for process in self.all:
            process.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _run(rank: int, processes: int, folder: Path, variables: dict, function: Callable, arguments: tuple) -> None:
    os.setpgrp()
    log = os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(variables)
    # processes started from here shall not import pytest
    multiprocessing.set_start_method(None, force=True)
    sys.modules["__main__"] = ModuleType("__main__")
    replace_what_needs_a_gpu(folder / "rendezvous")
    torch.save(function(rank, processes, *arguments), folder / f"{rank}.pt")


def train(rank: int, processes: int, dataset: int, trainer: str, continued: bool = False) -> None:
    """What `nnUNetv2_train DATASET 2d 0 -tr TRAINER -num_gpus PROCESSES [--c]` runs in each process."""
    run_training.run_ddp(
        rank, str(dataset), "2d", 0, trainer, "nnUNetPlans", False, continued, False, None, False, False, processes
    )

"""Write tiny datasets, and run nnU-Net's commands without their ten seconds of imports.

Each command is forked from a process that has already imported nnU-Net. The forked process calls the entry point of the
installed command with the command's arguments.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk

from support.fingerprint import write_fingerprint
from support.paths import PROGRAMS

PRELOADED = [
    "nnunetv2.run.run_training",
    # to find a trainer, nnU-Net imports all modules before the trainer's in the alphabet; this slow module imports timm
    "nnunetv2.training.nnUNetTrainer.primus.primus_trainers",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.evaluation.find_best_configuration",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunetv2.model_sharing.entry_points",
    "nnunet_mamba_mis.trainers",
]


@dataclass
class Dataset:
    """A dataset; PNG images are (channels, H, W), NIfTI images (channels, slices, H, W), labels without channels."""

    number: int
    cases: dict[str, tuple[np.ndarray, np.ndarray]]
    labels: dict[str, Any]
    file_ending: str = ".png"
    spacing: tuple[float, float, float] = (999.0, 1.0, 1.0)
    further: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"Dataset{self.number:03d}_Tiny"


class Workplace:
    """nnU-Net's three folders, a folder of trainers, and functions that run commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw, self.preprocessed, self.results = root / "raw", root / "preprocessed", root / "results"
        for folder in (self.raw, self.preprocessed, self.results, root / "trainers"):
            folder.mkdir()
        shutil.copy(PROGRAMS / "brief_trainers.py", root / "trainers")
        self.variables = os.environ | {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": os.pathsep.join([str(root / "trainers"), os.environ.get("nnUNet_extTrainer", "")]),
        }
        self.commands = 0

    def set_here(self, environment: pytest.MonkeyPatch, **variables: str) -> None:
        """Set nnU-Net's environment variables in this process; `variables` override them."""
        for name, value in (self.variables | variables).items():
            environment.setenv(name, value)

    def start(self, command: str, *arguments: object, **variables: str | None) -> Running:
        """Start a command; an environment variable whose value is None is not set."""
        self.commands += 1
        log = self.root / f"{self.commands:03d}_{command}.log"
        if command == "nnUNetv2_train":
            # augment in the main process; set only here, as planning rejects the value 0
            variables = {"nnUNet_n_proc_DA": "0", **variables}
        given = {name: value for name, value in (self.variables | variables).items() if value is not None}
        process = _forks().Process(target=_call, args=(command, [str(a) for a in arguments], given, log))
        process.start()
        return Running(process, log)

    def run(self, command: str, *arguments: object, status: int = 0, **variables: str | None) -> str:
        """Run a command, assert its exit status, and return its output."""
        return self.start(command, *arguments, **variables).end(status)

    def train(self, dataset: int, fold: int | str, trainer: str, *arguments: object, status: int = 0) -> str:
        return self.run(
            "nnUNetv2_train", dataset, "2d", fold, "-tr", trainer, "-device", "cpu", *arguments, status=status
        )

    def train_all(self, trainings: Iterable[tuple[int, int, str]], *arguments: object) -> None:
        """Train several folds, each given as (dataset, fold, trainer), two at a time."""
        running: list[Running] = []
        for dataset, fold, trainer in trainings:
            if len(running) == 2:
                running.pop(0).end()
            running.append(
                self.start("nnUNetv2_train", dataset, "2d", fold, "-tr", trainer, "-device", "cpu", *arguments)
            )
        for training in running:
            training.end()

    def predict(self, dataset: int, trainer: str, images: Path, output: Path, *arguments: object) -> str:
        # without worker processes
        return self.run("nnUNetv2_predict", "-d", dataset, "-c", "2d", "-tr", trainer, "-device", "cpu",
                        "-i", images, "-o", output, "-npp", 0, "-nps", 0, *arguments)  # fmt: skip

    def model(self, dataset: int, trainer: str) -> Path:
        """Return the folder of a trained model."""
        (folder,) = self.results.glob(f"Dataset{dataset:03d}_*/{trainer}__nnUNetPlans__2d")
        return folder

    def add(self, dataset: Dataset) -> Dataset:
        """Write, plan and preprocess a dataset."""
        raw = self.raw / dataset.name
        for folder in ("imagesTr", "labelsTr"):
            (raw / folder).mkdir(parents=True)
        for case, (image, label) in dataset.cases.items():
            write_image(raw / "imagesTr", case, image, dataset)
            write_label(raw / "labelsTr" / f"{case}{dataset.file_ending}", label, dataset)
        channels = len(next(iter(dataset.cases.values()))[0])
        description = {
            "channel_names": {str(channel): f"channel{channel}" for channel in range(channels)},
            "labels": dataset.labels,
            "numTraining": len(dataset.cases),
            "file_ending": dataset.file_ending,
            **dataset.further,
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        folder = self.preprocessed / dataset.name
        folder.mkdir()
        shapes = [(1, *image.shape[1:])[-3:] for image, _ in dataset.cases.values()]
        write_fingerprint(folder, shapes, channels, dataset.spacing)
        self.run("nnUNetv2_plan_and_preprocess", "-d", dataset.number, "-c", "2d", "-npfp", 1, "-np", 1)
        return dataset


@dataclass
class Running:
    """A running command."""

    process: Any
    log: Path

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, line: str) -> None:
        """Wait until the output contains `line`."""
        with self._killed_on_failure():
            deadline = time.monotonic() + 200
            while line not in self.output():
                assert self.process.is_alive() and time.monotonic() < deadline, self.output()[-4000:]
                time.sleep(0.01)

    def end(self, status: int = 0) -> str:
        """Wait for the command to end, assert its exit status, and return its output."""
        with self._killed_on_failure():
            self.process.join(300)
            assert self.process.exitcode == status, self.output()[-4000:]
        return self.output()

    @contextmanager
    def _killed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            kill_group(self.process)
            raise


def kill_group(process: Any) -> None:
    """Kill a process that leads a group, and all processes that it started."""
    process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def write_image(folder: Path, case: str, image: np.ndarray, dataset: Dataset) -> None:
    """Write three channels as one RGB PNG, or any other image as one file per channel."""
    if dataset.file_ending == ".png" and len(image) == 3:
        imageio.imwrite(folder / f"{case}_0000.png", np.moveaxis(image, 0, -1))
        return
    for channel, values in enumerate(image):
        write_label(folder / f"{case}_{channel:04d}{dataset.file_ending}", values, dataset)


def write_label(path: Path, values: np.ndarray, dataset: Dataset) -> None:
    if dataset.file_ending == ".png":
        imageio.imwrite(path, values)
        return
    volume = sitk.GetImageFromArray(values)
    volume.SetSpacing(dataset.spacing[::-1])
    volume.SetOrigin((1.0, -2.0, 3.0))
    sitk.WriteImage(volume, path)


@functools.cache
def _forks():
    """Return the context of the process that commands are forked from, and start that process on first use."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as environment:
        # nnU-Net and torch read these variables on import
        environment.setenv("nnUNet_def_n_proc", "1")
        environment.setenv("OMP_NUM_THREADS", "1")
        # training on a CPU uses one thread per core: without this, the threads of two runs spin while they wait, which
        # is many times slower
        environment.setenv("OMP_WAIT_POLICY", "passive")
        context.Process(target=int).start()
    return context


def _call(command: str, arguments: list[str], variables: dict[str, str], log: Path) -> None:
    os.setpgrp()
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(variables | {"nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"})
    multiprocessing.set_start_method(None, force=True)
    # forked workers have already imported torch, which takes spawned workers two or three seconds; tests of the
    # installed commands use nnU-Net's own start method
    multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")
    # nnU-Net would fork twelve processes to list a folder
    importlib.import_module("nnunetv2.utilities.utils").create_lists_from_splitted_dataset_folder.__defaults__ = None, 1
    # drawing progress.png takes a third of a short run; tests of the installed commands draw it
    logger = importlib.import_module("nnunetv2.training.logging.nnunet_logger").LocalLogger
    logger.plot_progress_png = lambda self, folder: Path(folder, "progress.png").touch()
    sys.argv = [command, *arguments]
    (script,) = entry_points(group="console_scripts", name=command)
    sys.exit(script.load()())

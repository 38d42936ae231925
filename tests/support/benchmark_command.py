"""Run `mamba_mis benchmark run` and `status` on the small dataset, and create jobs without training."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.running.jobs import Candidate, Training
from nnunet_mamba_mis.cli.main import main
from support.nnunet_workplace import Running, Workplace
from support.paths import PROGRAMS
from support.small_dataset import NAME

DATASET = "Dataset001_A"


class Benchmark:
    """The command `mamba_mis benchmark`, with its own results folder."""

    def __init__(self, nnunet: Workplace, results: Path) -> None:
        results.mkdir(exist_ok=True)
        self.nnunet, self.results = nnunet, results
        self.variables = {
            "PYTHONPATH": str(PROGRAMS / "forking"),
            "OMP_NUM_THREADS": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_results": str(results),
        }

    def start(self, *arguments: object) -> Running:
        """Start the command in its own process."""
        return self.nnunet.start("mamba_mis", "benchmark", *arguments, **self.variables)

    def run(self, *arguments: object, status: int = 0) -> str:
        """Run the command in this process, and return its output."""
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as environment:
            self.nnunet.set_here(environment, **self.variables)
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                assert main(["benchmark", *map(str, arguments)]) == status, output.getvalue()
        return output.getvalue()

    def job(self, trainer: str, fold: int = 0, seed: int | None = None) -> Training:
        return Training(Candidate(self.results, NAME, Model(trainer), seed), fold)


def make_job(results: Path, fold: int = 0, seed: int | None = None) -> Training:
    """Return a job for a dataset that does not exist."""
    return Training(Candidate(results, DATASET, Model("T", "P"), seed), fold)


def finish_training(job: Training) -> None:
    """Write the files that mark a fold as trained and validated."""
    job.summary.parent.mkdir(parents=True)
    job.final_checkpoint.touch()
    job.summary.write_text('{"foreground_mean": {"Dice": 0.5}}')


def started_commands(job: Training) -> list[str]:
    """Return the commands that were started for a job."""
    return re.findall(r"# mamba_mis benchmark: .*: (?:\S+=\S* )*(nnUNetv2_train .*)", job.log.read_text())


def logged_epochs(job: Training) -> list[int]:
    """Return the numbers of the epochs that began, in order."""
    return [int(epoch) for epoch in re.findall(r": Epoch (\d+)", job.log.read_text())]

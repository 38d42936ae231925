"""One training of the grid: where its results lie, in which state they are, and the command that goes on with it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# nnU-Net's checkpoints in the order in which `--c` looks for them
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
LOG = "benchmark.log"
_MODEL = re.compile(r"(.+?)__(.+)__(.+)")


@dataclass(frozen=True)
class Job:
    """A dataset, trainer, plans, configuration, fold and seed.

    Args:
        results: nnU-Net's folder of results; a seed has a folder seed_N in it.
        dataset: nnU-Net's full name.
        trainer: its class name.
        plans: name of the plans.
        configuration: of the plans.
        fold: number of the fold.
        seed: or None for nnU-Net's own way, which seeds nothing.
    """

    results: Path
    dataset: str
    trainer: str
    plans: str
    configuration: str
    fold: int
    seed: int | None = None

    @classmethod
    def of_folder(cls, results: Path, folder: Path) -> Job | None:
        """The job of a fold's folder anywhere in the results, or None if it is no such folder."""
        *seeds, dataset, model, fold = folder.relative_to(results).parts
        match = _MODEL.fullmatch(model)
        number = fold.removeprefix("fold_")
        seeded = all(seed.removeprefix("seed_").isdecimal() for seed in seeds)
        if match is None or not number.isdecimal() or not seeded:
            return None
        trainer, plans, configuration = match.groups()
        seed = int(seeds[0].removeprefix("seed_")) if seeds else None
        return cls(results, dataset, trainer, plans, configuration, int(number), seed)

    @property
    def results_of_seed(self) -> Path:
        """What nnUNet_results is for this job."""
        return self.results if self.seed is None else self.results / f"seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Where nnU-Net writes this fold."""
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return self.results_of_seed / self.dataset / model / f"fold_{self.fold}"

    @property
    def log(self) -> Path:
        """All that the job's commands printed, one after the other."""
        return self.folder / LOG

    def __str__(self) -> str:
        seed = "" if self.seed is None else f" seed {self.seed}"
        return f"{self.dataset} {self.trainer} {self.plans} {self.configuration} fold {self.fold}{seed}"

    def is_done(self) -> bool:
        """Whether it is trained and validated; a validation older than the training is of an earlier one."""
        final, summary = self.folder / CHECKPOINTS[0], self.folder / "validation" / "summary.json"
        try:
            return summary.stat().st_mtime >= final.stat().st_mtime and bool(json.loads(summary.read_text()))
        except (OSError, ValueError):
            return False

    def has_begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any((self.folder / name).exists() for name in CHECKPOINTS)

    def command(self, device: str) -> list[str]:
        """nnU-Net's command that begins the job or goes on with it; the first word is a console script or "python"."""
        arguments = [self.dataset, self.configuration, str(self.fold)]
        arguments += ["-tr", self.trainer, "-p", self.plans, "-device", device]
        if (self.folder / CHECKPOINTS[0]).exists():
            arguments.append("--val")
        elif self.has_begun():
            arguments.append("--c")
        if self.seed is None:
            return ["nnUNetv2_train", *arguments]
        return ["python", "-m", "nnunet_mamba_mis.benchmark.seeded_train", str(self.seed), *arguments]

    def variables(self) -> dict[str, str]:
        """Environment variables of the command."""
        return {} if self.seed is None else {"nnUNet_results": str(self.results_of_seed)}


def as_typed(command: list[str], variables: Mapping[str, str]) -> str:
    """Return a command as one would type it in a shell."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(command)])

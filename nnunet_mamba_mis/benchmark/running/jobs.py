"""What is run: the training of a fold, and the prediction of a test set with a model's folds.

Each knows where its results lie, in which state they are, and the commands that go on with it.
"""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw

from nnunet_mamba_mis.benchmark.evaluation.scores import Labels, read_label_map
from nnunet_mamba_mis.benchmark.test_sets import ENSEMBLE, TestSet, labelled_cases

# nnU-Net's checkpoints in the order in which `--c` looks for them
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
LOG = "benchmark.log"
# nnU-Net puts it beside folds and, before the first of them, beside predictions
_DESCRIPTION = "dataset.json"
_MODEL = re.compile(r"(.+?)__(.+)__(.+)")


@dataclass(frozen=True)
class Training:
    """A fold of a model, trained and validated.

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
    def of_folder(cls, results: Path, folder: Path) -> Training | None:
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
    def model(self) -> Training:
        """What names the model: this."""
        return self

    @property
    def folds(self) -> str:
        """The only one."""
        return str(self.fold)

    @property
    def model_folder(self) -> Path:
        """Where nnU-Net writes the folds of this model."""
        return self.results_of_seed / self.dataset / f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def folder(self) -> Path:
        """Where nnU-Net writes this fold."""
        return self.model_folder / f"fold_{self.fold}"

    @property
    def log(self) -> Path:
        """All that the job's commands printed, one after the other."""
        return self.folder / LOG

    @property
    def summary(self) -> Path:
        """What nnU-Net writes at the end of validation."""
        return self.folder / "validation" / "summary.json"

    @property
    def needs(self) -> Sequence[Training]:
        """What has to be done before: nothing."""
        return ()

    def __str__(self) -> str:
        seed = "" if self.seed is None else f" seed {self.seed}"
        return f"{self.dataset} {self.trainer} {self.plans} {self.configuration} fold {self.fold}{seed}"

    def is_done(self) -> bool:
        """Whether it is trained and validated; a validation older than the training is of an earlier one."""
        return _is_newer(self.summary, [self.folder / CHECKPOINTS[0]])

    def prepare(self) -> None:
        """Set half-written checkpoints aside, which must not keep `--c` from older ones; torch's are zip archives."""
        for path in (self.folder / name for name in CHECKPOINTS):
            if path.exists() and not zipfile.is_zipfile(path):
                path.replace(f"{path}.broken")

    def has_begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any((self.folder / name).exists() for name in CHECKPOINTS)

    def commands(self, device: str) -> list[list[str]]:
        """nnU-Net's command that begins the job or goes on with it; the first word is a console script or "python"."""
        arguments = [self.dataset, self.configuration, str(self.fold)]
        arguments += ["-tr", self.trainer, "-p", self.plans, "-device", device]
        if (self.folder / CHECKPOINTS[0]).exists():
            arguments.append("--val")
        elif self.has_begun():
            arguments.append("--c")
        if self.seed is None:
            return [["nnUNetv2_train", *arguments]]
        return [["python", "-m", "nnunet_mamba_mis.benchmark.running.seeded_train", str(self.seed), *arguments]]

    def variables(self) -> dict[str, str]:
        """Environment variables of the command."""
        return {} if self.seed is None else {"nnUNet_results": str(self.results_of_seed)}


@dataclass(frozen=True)
class Prediction:
    """A test set, predicted with the ensemble of a model's folds, and evaluated.

    Args:
        needs: the folds' trainings.
        test_set: what is predicted.
    """

    needs: Sequence[Training]
    test_set: TestSet

    @classmethod
    def of_folder(cls, results: Path, folder: Path) -> Prediction | None:
        """The job of a test set's folder anywhere in the results, or None if it is no such folder."""
        ensemble, dataset, part = folder.parts[-3:]
        test_set = TestSet.of_folder(dataset, part)
        folds = ENSEMBLE.fullmatch(ensemble)
        if folds is None or test_set is None:
            return None
        model = folder.parents[2]
        needs = [Training.of_folder(results, model / f"fold_{fold}") for fold in folds[1].split("_")]
        return cls(tuple(filter(None, needs)), test_set) if all(needs) else None

    @property
    def model(self) -> Training:
        """Any of the trainings, for what all of them share."""
        return self.needs[0]

    @property
    def dataset(self) -> str:
        """That the model was trained on."""
        return self.model.dataset

    @property
    def folds(self) -> str:
        """Of the ensemble."""
        return " ".join(str(training.fold) for training in self.needs)

    @property
    def folder(self) -> Path:
        """Where the predictions are written."""
        ensemble = f"test_folds_{self.folds.replace(' ', '_')}"
        return self.model.model_folder / ensemble / self.test_set.dataset / self.test_set.part

    @property
    def log(self) -> Path:
        """All that the job's commands printed, one after the other."""
        return self.folder / LOG

    @property
    def summary(self) -> Path:
        """What nnU-Net writes at the end of the evaluation."""
        return self.folder / "summary.json"

    def __str__(self) -> str:
        model = self.model
        seed = "" if model.seed is None else f" seed {model.seed}"
        name = f"{model.dataset} {model.trainer} {model.plans} {model.configuration}"
        return f"{name} folds {self.folds}{seed} on {self.test_set}"

    def is_done(self) -> bool:
        """Whether all labelled images are predicted with the trainings as they are, and evaluated."""
        return _is_newer(self.summary, self._checkpoints) and self._is_whole()

    def has_begun(self) -> bool:
        """Whether nnU-Net has begun to predict."""
        return (self.folder / _DESCRIPTION).exists()

    def prepare(self) -> None:
        """Remove what must not be taken for a result: an old summary, predictions that are old or cut off."""
        self.summary.unlink(missing_ok=True)
        try:
            description = self._description
            ending = description["file_ending"]
        except (ValueError, KeyError, TypeError):
            return  # nnU-Net says so in the log
        cases = set(labelled_cases(self.test_set.labels, ending))
        newest = _newest(self._checkpoints)
        for case in labelled_cases(self.folder, ending):
            file = self.folder / f"{case}{ending}"
            if case not in cases or file.stat().st_mtime < newest or not _can_be_read(file, description):
                file.unlink()

    def commands(self, device: str) -> list[list[str]]:
        """nnU-Net's commands: prediction of what is not there, evaluation."""
        model, folder = self.model, str(self.folder)
        of_model = ["-d", model.dataset, "-c", model.configuration, "-tr", model.trainer, "-p", model.plans]
        folders = ["-i", str(self.test_set.images), "-o", folder]
        # the network takes the cores, so that more workers would only be in its way
        workers = ["-npp", "1", "-nps", "1"] if device == "cpu" else []
        how = [*workers, "-device", device, "--continue_prediction"]
        described = ["-djfile", f"{folder}/{_DESCRIPTION}", "-pfile", f"{folder}/plans.json"]
        return [
            ["nnUNetv2_predict", *of_model, "-f", *self.folds.split(), *folders, *how],
            ["nnUNetv2_evaluate_folder", str(self.test_set.labels), folder, *described],
        ]

    @property
    def _checkpoints(self) -> list[Path]:
        return [training.folder / CHECKPOINTS[0] for training in self.needs]

    @property
    def _description(self) -> dict[str, Any]:
        """The dataset.json that the model was trained with."""
        return json.loads((self.model.model_folder / _DESCRIPTION).read_text())

    def _is_whole(self) -> bool:
        """Whether all labelled images were evaluated; images may have been added, or nnUNet_raw be elsewhere."""
        if not nnUNet_raw.is_set() or not self.test_set.labels.is_dir():
            return True
        try:
            evaluated = json.loads(self.summary.read_text())["metric_per_case"]
            ending = self._description["file_ending"]
            there = {Path(case["prediction_file"]).name.removesuffix(ending) for case in evaluated}
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return there == set(labelled_cases(self.test_set.labels, ending))

    def variables(self) -> dict[str, str]:
        """Environment variables of the commands."""
        return self.model.variables()


Job = Training | Prediction


def predictions(trainings: Sequence[Training], test_sets: Mapping[str, Sequence[TestSet]]) -> list[Prediction]:
    """Return a job for each model and test set.

    Args:
        trainings: the grid.
        test_sets: for each dataset that is trained on.
    """
    of_model: dict[Path, list[Training]] = {}
    for training in sorted(trainings, key=lambda training: training.fold):
        of_model.setdefault(training.model_folder, []).append(training)
    models = [of_model[folder] for folder in dict.fromkeys(training.model_folder for training in trainings)]
    return [Prediction(tuple(folds), test_set) for folds in models for test_set in test_sets[folds[0].dataset]]


def as_typed(commands: Sequence[Sequence[str]], variables: Mapping[str, str]) -> str:
    """Return commands, one after the other, as one would type them in a shell."""
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return " && ".join(f"{words} {shlex.join(command)}".lstrip() for command in commands)


def _is_newer(summary: Path, checkpoints: Sequence[Path]) -> bool:
    """Whether a summary can be read and is not older than any of the checkpoints."""
    try:
        return summary.stat().st_mtime >= _newest(checkpoints) and bool(json.loads(summary.read_text()))
    except (OSError, ValueError):
        return False


def _newest(files: Sequence[Path]) -> float:
    return max(file.stat().st_mtime for file in files)


def _can_be_read(file: Path, description: Mapping[str, Any]) -> bool:
    """Whether a label map is not cut off."""
    try:
        read_label_map(file, Labels.of(description))
    except ValueError:
        return False
    return True

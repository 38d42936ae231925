"""Jobs: training a fold, and predicting a test set with a model's folds.

A job knows the folder and state of its results, and the commands that start or resume it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_mamba_mis.benchmark.label_maps import Labels, labelled_cases, probabilities_file, read_label_map
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.test_sets import TestSet, parse_predictions_folder, predictions_folder
from nnunet_mamba_mis.nnunet.dataset import Dataset
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE, check_dataset, dataset_id, folder_if_set, is_dataset_name
from nnunet_mamba_mis.nnunet.records import read_record
from nnunet_mamba_mis.nnunet.results import (
    CHECKPOINTS,
    PLANS_FILE,
    SUMMARY_FILE,
    Summary,
    fold_folder,
    fold_number,
    predicted_files,
    validation_summary,
)
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import as_typed

LOG = "benchmark.log"


@dataclass(frozen=True)
class Candidate:
    """A model trained on a dataset: the properties that its folds share.

    Args:
        results: nnU-Net's folder of results; the results of seed N are in its subfolder seed_N.
        dataset: nnU-Net's full name of the dataset.
        model: Trainer, plans and configuration.
        seed: Seed of the random generators, or None for nnU-Net's unseeded training.
    """

    results: Path
    dataset: str
    model: Model
    seed: int | None = None

    @classmethod
    def parse(cls, results: Path, folder: Path) -> Candidate | None:
        """Return the candidate of a model's folder in the results, or None for any other folder."""
        *seeds, dataset, model_name = folder.relative_to(results).parts
        numbers = [name.removeprefix("seed_") for name in seeds]
        model = Model.parse(model_name)
        if model is None or not is_dataset_name(dataset) or not all(map(str.isdecimal, numbers)):
            return None
        return cls(results, dataset, model, int(numbers[0]) if numbers else None)

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables for nnU-Net's commands."""
        return {} if self.seed is None else {"nnUNet_results": str(self._results_of_seed)}

    @property
    def folder(self) -> Path:
        """Where nnU-Net writes the folds."""
        return self._results_of_seed / self.dataset / str(self.model)

    @property
    def _results_of_seed(self) -> Path:
        return self.results if self.seed is None else self.results / f"seed_{self.seed}"

    @property
    def file_ending(self) -> str:
        """File ending of predictions, from the model's dataset.json.

        Raises:
            UserError: The file is missing or broken.
        """
        return read_record(self.folder / DATASET_FILE, Dataset).file_ending

    def __str__(self) -> str:
        return " ".join([self.dataset, *self.model])

    @property
    def seed_suffix(self) -> str:
        """The seed as the end of a job's name; empty without a seed."""
        return "" if self.seed is None else f" seed {self.seed}"


@dataclass(frozen=True)
class Training:
    """A job that trains and validates a fold of a model.

    Args:
        candidate: The model.
        fold: Number of the fold.
        probabilities: Whether validation saves probabilities.
    """

    candidate: Candidate
    fold: int
    probabilities: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, results: Path, folder: Path) -> Training | None:
        """Return the job of a fold's folder in the results, or None for any other folder."""
        candidate, fold = Candidate.parse(results, folder.parent), fold_number(folder)
        return None if candidate is None or fold is None else cls(candidate, fold)

    @property
    def folds(self) -> tuple[int, ...]:
        """The number of the fold, as a tuple with one element."""
        return (self.fold,)

    @property
    def needs(self) -> Sequence[Training]:
        """Jobs that must be done first: none."""
        return ()

    @property
    def folder(self) -> Path:
        """Where nnU-Net writes this fold."""
        return fold_folder(self.candidate.folder, self.fold)

    @property
    def log(self) -> Path:
        """File with all output of the job's commands."""
        return self.folder / LOG

    @property
    def summary(self) -> Path:
        """File that nnU-Net writes at the end of validation."""
        return validation_summary(self.folder)

    @property
    def final_checkpoint(self) -> Path:
        """File that nnU-Net writes at the end of training."""
        return self.folder / CHECKPOINTS[0]

    def __str__(self) -> str:
        return f"{self.candidate} fold {self.fold}{self.candidate.seed_suffix}"

    def is_done(self) -> bool:
        """Whether the fold is trained and validated; a validation older than the final checkpoint is outdated."""
        return _is_newer(self.summary, [self.final_checkpoint]) and not (
            self.probabilities and _lacks_probabilities(self)
        )

    def prepare(self) -> None:
        """Rename truncated checkpoints, so that `--c` uses an intact older one."""
        for checkpoint in (self.folder / name for name in CHECKPOINTS):
            # torch writes checkpoints as zip archives, whose directory is at the end
            if checkpoint.exists() and not zipfile.is_zipfile(checkpoint):
                checkpoint.replace(f"{checkpoint}.broken")

    def has_begun(self) -> bool:
        """Whether a checkpoint to resume from exists."""
        return any((self.folder / name).exists() for name in CHECKPOINTS)

    def commands(self, device: str) -> list[list[str]]:
        """Return nnU-Net's command to start or resume the job; its first word is a console script or "python"."""
        dataset, (trainer, plans, configuration) = self.candidate.dataset, self.candidate.model
        arguments = [dataset, configuration, str(self.fold), "-tr", trainer, "-p", plans, "-device", device]
        if self.final_checkpoint.exists():
            arguments.append("--val")
        elif self.has_begun():
            arguments.append("--c")
        arguments += ["--npz"] * self.probabilities
        seed = self.candidate.seed
        if seed is None:
            return [["nnUNetv2_train", *arguments]]
        return [["python", "-m", "nnunet_mamba_mis.benchmark.running.seeded_train", str(seed), *arguments]]


@dataclass(frozen=True)
class Prediction:
    """A job that predicts a test set with the ensemble of a model's folds, and evaluates the predictions.

    Args:
        candidate: The model.
        folds: Numbers of the folds.
        test_set: The test set.
        probabilities: Whether to save probabilities.
    """

    candidate: Candidate
    folds: tuple[int, ...]
    test_set: TestSet
    probabilities: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, results: Path, folder: Path) -> Prediction | None:
        """Return the job of a test set's folder in the results, or None for any other folder."""
        candidate, parsed = Candidate.parse(results, folder.parents[2]), parse_predictions_folder(folder)
        return None if candidate is None or parsed is None else cls(candidate, *parsed)

    @property
    def needs(self) -> Sequence[Training]:
        """Jobs that must be done first: the training of each fold."""
        return tuple(Training(self.candidate, fold) for fold in self.folds)

    @property
    def folder(self) -> Path:
        """Where nnU-Net writes the predictions."""
        return predictions_folder(self.candidate.folder, self.folds, self.test_set)

    @property
    def log(self) -> Path:
        """File with all output of the job's commands."""
        return self.folder / LOG

    @property
    def summary(self) -> Path:
        """File that nnU-Net writes at the end of the evaluation."""
        return self.folder / SUMMARY_FILE

    def __str__(self) -> str:
        folds = " ".join(map(str, self.folds))
        return f"{self.candidate} folds {folds}{self.candidate.seed_suffix} on {self.test_set}"

    def is_done(self) -> bool:
        """Whether all labelled images are predicted with the current checkpoints, and evaluated."""
        return (
            _is_newer(self.summary, self._checkpoints)
            and self._is_complete()
            and not (self.probabilities and _lacks_probabilities(self))
        )

    def has_begun(self) -> bool:
        """Whether nnU-Net has started to predict."""
        return (self.folder / DATASET_FILE).exists()

    def prepare(self) -> None:
        """Remove files that must not be mistaken for results: an old summary, and outdated or truncated predictions."""
        self.summary.unlink(missing_ok=True)
        labels = self._labels
        if labels is None:
            return  # nnU-Net reports the problem in the log
        ending = labels.file_ending
        cases = set(labelled_cases(self.test_set.labels, ending))
        newest = _newest(self._checkpoints)
        for case in labelled_cases(self.folder, ending):
            file = self.folder / f"{case}{ending}"
            is_usable = case in cases and file.stat().st_mtime >= newest and _is_readable(file, labels)
            # nnU-Net checks only that files exist; a truncated npz file is not a valid zip archive
            if not is_usable or (self.probabilities and not zipfile.is_zipfile(probabilities_file(file, ending))):
                file.unlink()

    def commands(self, device: str) -> list[list[str]]:
        """Return nnU-Net's commands to predict the missing cases and evaluate all cases."""
        trainer, plans, configuration = self.candidate.model
        model = ["-d", self.candidate.dataset, "-c", configuration, "-tr", trainer, "-p", plans]
        folders = ["-i", str(self.test_set.images), "-o", str(self.folder)]
        # the network uses all cores, so more workers would only slow it down
        workers = ["-npp", "1", "-nps", "1"] if device == "cpu" else []
        options = [*workers, "-device", device, "--continue_prediction"]
        options += ["--save_probabilities"] * self.probabilities
        described = ["-djfile", str(self.folder / DATASET_FILE), "-pfile", str(self.folder / PLANS_FILE)]
        return [
            ["nnUNetv2_predict", *model, "-f", *map(str, self.folds), *folders, *options],
            ["nnUNetv2_evaluate_folder", str(self.test_set.labels), str(self.folder), *described],
        ]

    @property
    def _checkpoints(self) -> list[Path]:
        return [training.final_checkpoint for training in self.needs]

    @property
    def _labels(self) -> Labels | None:
        """The labels in the model's dataset.json; None if the file is missing or broken."""
        try:
            return Labels.read(self.candidate.folder / DATASET_FILE)
        except UserError:
            return None

    def _is_complete(self) -> bool:
        """Whether the evaluation covers exactly the images that have labels now; True if the labels cannot be found."""
        if folder_if_set("nnUNet_raw") is None or not self.test_set.labels.is_dir():
            return True
        try:
            ending = self.candidate.file_ending
            evaluated = {name.removesuffix(ending) for name in predicted_files(self.summary)}
        except UserError:
            return False
        return evaluated == set(labelled_cases(self.test_set.labels, ending))


Job = Training | Prediction


def job_as_typed(job: Job, device: str, variables: Mapping[str, str]) -> str:
    """Return a job's commands as typed in a shell, with these environment variables in addition to the job's own."""
    all_variables = {**job.candidate.variables, **variables}
    return " && ".join(as_typed(command, all_variables) for command in job.commands(device))


def predictions(training_jobs: Iterable[Training], test_sets: Mapping[str, Sequence[TestSet]]) -> list[Prediction]:
    """Return a job for each model and test set.

    Args:
        training_jobs: The folds to train.
        test_sets: Test sets for each training dataset.
    """
    folds: dict[Candidate, list[Training]] = {}
    for training in training_jobs:
        folds.setdefault(training.candidate, []).append(training)
    return [
        Prediction(candidate, tuple(sorted(job.fold for job in jobs)), test_set, jobs[0].probabilities)
        for candidate, jobs in folds.items()
        for test_set in test_sets[candidate.dataset]
    ]


def announce(jobs: Iterable[Job]) -> None:
    """Create a log for each job, so that `find_jobs` finds the job.

    Raises:
        UserError: A folder cannot be written to.
    """
    for job in jobs:
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            job.log.touch()
        except OSError as error:
            raise UserError(f"cannot write to {job.folder}: {error.strerror or error}") from error


def find_jobs(results: Path, datasets: Sequence[str] | None = None) -> list[Job]:
    """Return the announced jobs, in the order in which tables list them.

    Args:
        results: nnUNet_results.
        datasets: Ids or names of datasets; all by default.

    Raises:
        UserError: A dataset is neither an id nor a name.
    """
    jobs: list[Job] = []
    for start in ("", "seed_*/"):
        trainings = results.glob(f"{start}Dataset*/*/fold_*/{LOG}")
        jobs += filter(None, (Training.parse(results, log.parent) for log in trainings))
        tests = results.glob(f"{start}Dataset*/*/test_folds_*/*/*/{LOG}")
        jobs += filter(None, (Prediction.parse(results, log.parent) for log in tests))
    if datasets:
        for dataset in datasets:
            check_dataset(dataset)
        selected = {int(dataset) if dataset.isdecimal() else dataset for dataset in datasets}
        jobs = [job for job in jobs if selected & {job.candidate.dataset, dataset_id(job.candidate.dataset)}]
    return sorted(jobs, key=_order)


def _order(job: Job) -> tuple[Any, ...]:
    candidate = job.candidate
    trainer, plans, configuration = candidate.model
    test_set = str(job.test_set) if isinstance(job, Prediction) else ""
    seed = -1 if candidate.seed is None else candidate.seed
    return candidate.dataset, plans, configuration, bool(job.needs), trainer, test_set, job.folds, seed


def _is_newer(summary: Path, checkpoints: Sequence[Path]) -> bool:
    """Return whether a summary can be read and is not older than any checkpoint."""
    try:
        return summary.stat().st_mtime >= _newest(checkpoints) and bool(read_record(summary, Summary).model_fields_set)
    except (OSError, UserError):
        return False


def _lacks_probabilities(job: Job) -> bool:
    """Return whether probabilities are missing for a prediction listed in the job's summary."""
    try:
        ending = job.candidate.file_ending
        predictions = [job.summary.with_name(name) for name in predicted_files(job.summary)]
    except UserError:
        return True
    return not all(probabilities_file(file, ending).is_file() for file in predictions)


def _newest(files: Sequence[Path]) -> float:
    return max(file.stat().st_mtime for file in files)


def _is_readable(file: Path, labels: Labels) -> bool:
    """Return whether a label map can be read; a truncated one cannot."""
    try:
        read_label_map(file, labels)
    except ValueError:
        return False
    return True

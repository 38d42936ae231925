"""Read how each model was trained, and report differences that make models hard to compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nnunet_mamba_mis.benchmark.evaluation.folds import Fold
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.nnunet.logs import Epoch, read_training_logs
from nnunet_mamba_mis.nnunet.results import training_settings

# name in debug.json or plans.json → name in the report, for settings that must be equal before a difference in scores
# can be attributed to the networks
_MUST_BE_EQUAL = {
    "patch_size": "patch size",
    "batch_size": "batch size",
    "spacing": "spacing",
    "normalization_schemes": "normalisation",
    "preprocessor_name": "preprocessor",
    "num_epochs": "number of epochs",
    "num_iterations_per_epoch": "iterations per epoch",
}
_INFORMATIVE = {"optimizer": "optimiser", "initial_lr": "learning rate", "device": "device"}


@dataclass(frozen=True)
class TrainingRecord:
    """Record of a fold's training.

    Args:
        settings: Known settings, by their name in the report.
        epochs: Epochs from nnU-Net's logs; an epoch that was interrupted and repeated is listed once.
        seconds: Duration of all logged epochs, including repeated ones.
        hardware: Name of the GPU, or of the device if it is not a GPU, and of the host; empty if unknown.
        problems: Descriptions of files that cannot be used.
    """

    settings: Mapping[str, str]
    epochs: Sequence[Epoch]
    seconds: float
    hardware: str
    problems: Sequence[str]

    @property
    def seconds_per_epoch(self) -> float:
        """Median over epochs, so that the slow first epoch does not matter; NaN without epochs."""
        times = sorted(epoch.seconds for epoch in self.epochs)
        return times[len(times) // 2] if times else float("nan")


def read_training(fold: Fold) -> TrainingRecord:
    """Read nnU-Net's records of a fold's training: debug.json, plans.json and the logs."""
    problems: list[str] = []
    known = training_settings(fold.folder, fold.model.configuration, problems)
    settings = {words: _shown(known[name]) for name, words in (_MUST_BE_EQUAL | _INFORMATIVE).items() if name in known}
    if "optimizer" in known:  # only its name, without arguments
        settings[_INFORMATIVE["optimizer"]] = str(known["optimizer"]).partition(" ")[0]
    logged = read_training_logs(fold.folder, problems)
    epochs = list({epoch.number: epoch for epoch in logged}.values())
    machine = (known.get("gpu_name") or known.get("device"), known.get("hostname"))
    hardware = ", ".join(str(part) for part in machine if part)
    return TrainingRecord(settings, epochs, sum(epoch.seconds for epoch in logged), hardware, problems)


def comparability_warnings(records: Mapping[Fold, TrainingRecord]) -> list[str]:
    """Return warnings about settings that differ between or within models, unfinished training and unusable files."""
    unusable = dict.fromkeys(problem for record in records.values() for problem in record.problems)
    return [*_unequal(records), *_unfinished(records), *unusable]


def settings_of(model: Model, records: Mapping[Fold, TrainingRecord]) -> dict[str, str]:
    """Return the settings of a model's folds; differing values are joined with "or"."""
    values: dict[str, list[str]] = {}
    for fold, record in records.items():
        if fold.model == model:
            for name, value in record.settings.items():
                values.setdefault(name, []).append(value)
    return {name: " or ".join(dict.fromkeys(variants)) for name, variants in values.items()}


def _unequal(records: Mapping[Fold, TrainingRecord]) -> Iterator[str]:
    models = list(dict.fromkeys(fold.model for fold in records))
    all_settings = {model: settings_of(model, records) for model in models}
    for name in _MUST_BE_EQUAL.values():
        values = {model: settings[name] for model, settings in all_settings.items() if name in settings}
        if len(set(values.values())) > 1 or any(" or " in value for value in values.values()):
            yield f"{name} differs: " + ", ".join(f"{model} {value}" for model, value in values.items())


def _unfinished(records: Mapping[Fold, TrainingRecord]) -> Iterator[str]:
    for fold, record in records.items():
        planned = record.settings.get(_MUST_BE_EQUAL["num_epochs"], "")
        done = 1 + max((epoch.number for epoch in record.epochs), default=-1)
        if planned.isdigit() and done and done < int(planned):
            yield f"{fold} was validated after only {done} of {planned} epochs"


def _shown(value: object) -> str:
    """Return text for a value: sizes as 256 × 256, and lists of names without repetitions."""
    if not isinstance(value, tuple):
        return str(value)
    if all(isinstance(item, int | float) for item in value):
        return " × ".join(f"{item:g}" for item in value)
    return ", ".join(dict.fromkeys(map(str, value)))

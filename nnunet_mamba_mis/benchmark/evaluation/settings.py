"""How each model was trained, and where that makes a comparison unfair."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mamba_mis.benchmark.evaluation.folds import Fold, Model
from nnunet_mamba_mis.nnunet.logs import Epoch, read_training_logs

# for a difference in scores to be the networks', all of this has to be equal
# name in debug.json or plans.json → in words
_FAIR = {
    "patch_size": "patch size",
    "batch_size": "batch size",
    "spacing": "spacing",
    "normalization_schemes": "normalisation",
    "preprocessor_name": "preprocessor",
    "num_epochs": "number of epochs",
    "num_iterations_per_epoch": "iterations per epoch",
}
_FURTHER = {"optimizer": "optimiser", "initial_lr": "learning rate", "device": "device"}


@dataclass(frozen=True)
class Training:
    """How a fold was trained.

    Args:
        settings: in words; what is not known is not there.
        epochs: as nnU-Net logged them; an epoch that was interrupted and repeated is there once.
        seconds: of all epochs logged, repeated ones too.
        hardware: GPU or, without one, the device, and the host's name; empty if not known.
    """

    settings: Mapping[str, str]
    epochs: Sequence[Epoch]
    seconds: float
    hardware: str

    @property
    def seconds_per_epoch(self) -> float:
        """Median over the epochs, so that the first one with its start-up does not matter; NaN if there is none."""
        times = sorted(epoch.seconds for epoch in self.epochs)
        return times[len(times) // 2] if times else float("nan")


def read_training(fold: Fold) -> Training:
    """Read what nnU-Net wrote about a fold's training: debug.json, plans.json and the logs."""
    debug = _json(fold.folder / "debug.json")
    known = _configuration(fold) | _literal(debug.get("configuration_manager", "")) | debug
    settings = {
        words: known[name].split()[0] if name == "optimizer" else _shown(known[name])
        for name, words in (_FAIR | _FURTHER).items()
        if name in known
    }
    logged = read_training_logs(fold.folder)
    epochs = list({epoch.number: epoch for epoch in logged}.values())
    hardware = ", ".join(filter(None, (debug.get("gpu_name") or debug.get("device"), debug.get("hostname"))))
    return Training(settings, epochs, sum(epoch.seconds for epoch in logged), hardware)


def unfair(trainings: Mapping[Fold, Training]) -> list[str]:
    """Return in words what differs between models, or within one, and is not the network; and what was not finished."""
    return [*_unequal(trainings), *_unfinished(trainings)]


def settings_of(model: Model, trainings: Mapping[Fold, Training]) -> dict[str, str]:
    """Return the settings of a model's folds; more than one value if they differ."""
    values: dict[str, list[str]] = {}
    for fold, training in trainings.items():
        if fold.model == model:
            for name, value in training.settings.items():
                values.setdefault(name, []).append(value)
    return {name: " or ".join(dict.fromkeys(found)) for name, found in values.items()}


def _unequal(trainings: Mapping[Fold, Training]) -> Iterator[str]:
    models = list(dict.fromkeys(fold.model for fold in trainings))
    of_model = {model: settings_of(model, trainings) for model in models}
    for name in _FAIR.values():
        values = {model: settings[name] for model, settings in of_model.items() if name in settings}
        if len(set(values.values())) > 1 or any(" or " in value for value in values.values()):
            yield f"{name} differs: " + ", ".join(f"{model} {value}" for model, value in values.items())


def _unfinished(trainings: Mapping[Fold, Training]) -> Iterator[str]:
    for fold, training in trainings.items():
        planned = training.settings.get(_FAIR["num_epochs"], "")
        done = 1 + max((epoch.number for epoch in training.epochs), default=-1)
        if planned.isdigit() and done and done < int(planned):
            yield f"{fold} was validated after {done} of {planned} epochs"


def _configuration(fold: Fold) -> dict[str, Any]:
    """The configuration in plans.json, with what it inherits."""
    configurations = _json(fold.folder.parent / "plans.json").get("configurations", {})
    found: dict[str, Any] = {}
    name = fold.model.configuration
    while name in configurations:
        found = configurations[name] | found
        # gone from the table, so that a circle ends
        name = configurations.pop(name).get("inherits_from")
    return found


def _json(path: Path) -> dict[str, Any]:
    """Content of a file that only describes; nothing if it is not there or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _literal(text: str) -> dict[str, Any]:
    """A dict that was printed into debug.json."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {}
    return value if isinstance(value, dict) else {}


def _shown(value: object) -> str:
    """Return a list of sizes as 256 × 256, of names once each."""
    if not isinstance(value, list):
        return str(value)
    if all(isinstance(item, int | float) for item in value):
        return " × ".join(f"{item:g}" for item in value)
    return ", ".join(dict.fromkeys(map(str, value)))

"""The files that nnU-Net writes into a model's folder, TRAINER__PLANS__CONFIGURATION."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from nnunet_mamba_mis.nnunet.plans import Configuration, Plans
from nnunet_mamba_mis.nnunet.records import FileName, Record, read_record, read_record_if_usable
from nnunet_mamba_mis.utils.errors import UserError

# in the order in which `--c` looks for them; the first is written when training ends
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
PLANS_FILE = "plans.json"
# written beside predictions when they are evaluated
SUMMARY_FILE = "summary.json"
_SETTINGS_FILE = "debug.json"


def _name(path: object) -> object:
    """Return only the name of a path: results may have been moved since."""
    return Path(path).name if isinstance(path, str) else path


class _Case(Record):
    prediction_file: Annotated[FileName, BeforeValidator(_name)]


class _Mean(Record):
    Dice: float


class Summary(Record):
    """summary.json: the evaluation of predictions."""

    foreground_mean: _Mean | None = None
    metric_per_case: tuple[_Case, ...] | None = None

    @property
    def mean_dice(self) -> float | None:
        """Mean over the classes; None if no case has any of them."""
        dice = self.foreground_mean.Dice if self.foreground_mean else float("nan")
        return dice if dice == dice else None


def _printed_configuration(text: object) -> Configuration:
    try:
        return Configuration.model_validate_json(json.dumps(ast.literal_eval(text)))  # type: ignore[arg-type]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("expected a printed configuration") from None


class Settings(Record):
    """debug.json: attributes of the trainer, as printed text."""

    num_epochs: Annotated[str, Field(pattern=r"^\d{1,9}$")] | None = None
    num_iterations_per_epoch: str | None = None
    batch_size: str | None = None
    optimizer: str | None = None
    initial_lr: str | None = None
    device: str | None = None
    gpu_name: str | None = None
    hostname: str | None = None
    configuration_manager: Annotated[Configuration, BeforeValidator(_printed_configuration)] | None = None


def fold_folder(model: Path, fold: int | str) -> Path:
    """Return the folder of a model's fold."""
    return model / f"fold_{fold}"


def fold_number(folder: Path) -> int | None:
    """Return the number of a fold's folder, or None if it has no number, such as fold_all."""
    match = re.fullmatch(r"fold_([0-9]{1,9})", folder.name)
    return int(match[1]) if match else None


def validation_summary(fold: Path) -> Path:
    """Return the file that nnU-Net writes when the validation of a fold ends."""
    return fold / "validation" / SUMMARY_FILE


def predicted_files(summary: Path) -> list[str]:
    """Return the names of the predictions that a summary lists.

    Raises:
        UserError: The file cannot be read or is not a summary.
    """
    cases = read_record(summary, Summary).metric_per_case
    if cases is None:
        raise UserError(f"{summary} cannot be read: metric_per_case: Field required")
    return [case.prediction_file for case in cases]


def read_settings(fold: Path, problems: list[str]) -> Settings:
    """Return the settings that the trainer wrote, which are empty before training starts.

    Args:
        fold: Folder of the fold.
        problems: List for a message if the file cannot be used.
    """
    return read_record_if_usable(fold / _SETTINGS_FILE, Settings, problems) or Settings()


def training_settings(fold: Path, configuration: str, problems: list[str]) -> dict[str, object]:
    """Return all known settings with which a fold was trained: those of plans.json, overridden by debug.json.

    Args:
        fold: Folder of the fold.
        configuration: Name of the configuration in the plans.
        problems: List for messages about files that cannot be used.
    """
    used = read_settings(fold, problems)
    plans = read_record_if_usable(fold.parent / PLANS_FILE, Plans, problems)
    planned = plans.configuration(configuration) if plans and configuration in plans.configurations else None
    known: dict[str, object] = {}
    for record in (planned, used.configuration_manager, used):
        if record is not None:
            values = {name: getattr(record, name) for name in type(record).model_fields}
            known |= {name: value for name, value in values.items() if value is not None}
    return known

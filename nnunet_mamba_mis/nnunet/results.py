"""What nnU-Net writes into a model's folder, TRAINER__PLANS__CONFIGURATION."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_mamba_mis.utils.errors import UserError

# in the order in which `--c` looks for them; the first is written when training ends
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
PLANS_FILE = "plans.json"
# beside predictions when they are evaluated
SUMMARY_FILE = "summary.json"
_SETTINGS_FILE = "debug.json"


def fold_folder(model: Path, fold: int | str) -> Path:
    """Return the folder of a model's fold."""
    return model / f"fold_{fold}"


def fold_number(folder: Path) -> int | None:
    """Return the number of a fold's folder, or None if it is none, as fold_all."""
    number = folder.name.removeprefix("fold_")
    return int(number) if folder.name != number and number.isdecimal() else None


def validation_summary(fold: Path) -> Path:
    """Return the file that nnU-Net writes when the validation of a fold ends."""
    return fold / "validation" / SUMMARY_FILE


def predicted_files(summary: Path) -> list[str]:
    """Return the names of the predictions that a summary lists.

    Raises:
        UserError: The file cannot be read or is no summary.
    """
    try:
        return [Path(case["prediction_file"]).name for case in read_json(summary)["metric_per_case"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{summary} cannot be read: {error!r}") from None


def mean_dice(summary: Path) -> float | None:
    """Return the mean Dice of a summary's classes; None where it has none."""
    with suppress(KeyError, TypeError, ValueError):
        dice = float(read_json_if_usable(summary)["foreground_mean"]["Dice"])
        return dice if dice == dice else None
    return None


def planned_epochs(fold: Path) -> int | None:
    """Return the number of epochs of a whole training; None before it has begun."""
    with suppress(KeyError, ValueError):
        return int(read_json_if_usable(fold / _SETTINGS_FILE)["num_epochs"])
    return None


def training_settings(fold: Path, configuration: str) -> dict[str, Any]:
    """Return all that is known of how a fold was trained: plans.json, overridden by debug.json."""
    settings = read_json_if_usable(fold / _SETTINGS_FILE)
    plans = read_json_if_usable(fold.parent / PLANS_FILE)
    return _configuration(plans, configuration) | _literal(settings.get("configuration_manager", "")) | settings


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: It cannot be read; the text names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def read_first_json(paths: Iterable[Path]) -> Any:
    """Return the content of the first file that exists; None if none does.

    Raises:
        UserError: It cannot be read; the text names the file.
    """
    return next((read_json(path) for path in paths if path.is_file()), None)


def read_json_if_usable(path: Path) -> dict[str, Any]:
    """Return the object in a file that only describes; an empty one if the file is missing or broken."""
    with suppress(UserError):
        content = read_json(path)
        return content if isinstance(content, dict) else {}
    return {}


def _configuration(plans: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Return a configuration of the plans, with what it inherits."""
    remaining = dict(plans.get("configurations", {}))
    configuration: dict[str, Any] = {}
    while name in remaining:
        # removed, so that a circle ends
        inherited = remaining.pop(name)
        configuration = inherited | configuration
        name = inherited.get("inherits_from")
    return configuration


def _literal(text: str) -> dict[str, Any]:
    """Return a dict that was printed into debug.json."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {}
    return value if isinstance(value, dict) else {}

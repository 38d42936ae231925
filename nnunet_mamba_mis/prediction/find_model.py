"""Find a trained model in nnUNet_results from its dataset, trainer, plans and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_mamba_mis.nnunet.paths import find_dataset_name, folder
from nnunet_mamba_mis.nnunet.results import CHECKPOINTS, fold_number
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import shortened

_DEFAULTS = ("nnUNetTrainerMambaMIS", "nnUNetPlans", "2d")
_OPTIONS = ("-tr", "-p", "-c")


def find_model(
    dataset: str, trainer: str | None = None, plans: str | None = None, configuration: str | None = None
) -> Path:
    """Return the folder of a trained model in nnUNet_results.

    An omitted option only matters if several models match; its default then decides.

    Args:
        dataset: Id or full name of the dataset.
        trainer: Name of the trainer; default nnUNetTrainerMambaMIS.
        plans: Name of the plans; default nnUNetPlans.
        configuration: Name of the configuration; default 2d.

    Raises:
        UserError: No model matches, or several match and the defaults do not decide.
    """
    results = folder("nnUNet_results") / find_dataset_name(dataset)
    given = (trainer, plans, configuration)
    models = sorted(path for path in results.glob("*__*__*") if trained_folds(path))
    matches = _matching(models, given)
    if not matches:
        options = [f"{name} {value}" for name, value in zip(_OPTIONS, given, strict=True) if value is not None]
        described = f"no model with a trained fold for {' '.join(options)}" if options else "no trained model"
        way_out = f"choose one of {shortened([path.name for path in models])}" if models else "train one first"
        raise UserError(f"{described} in {results}: {way_out}")
    for part, default in enumerate(_DEFAULTS):
        only = [default if index == part else None for index in range(len(_DEFAULTS))]
        if len(matches) > 1 and given[part] is None:
            matches = _matching(matches, only) or matches
    if len(matches) > 1:
        differ = [name for part, name in enumerate(_OPTIONS) if len({_parts(path)[part] for path in matches}) > 1]
        names = shortened([path.name for path in matches])
        raise UserError(f"{results} has several models: choose with {' '.join(differ)} among {names}")
    return matches[0]


def trained_folds(model: Path) -> list[int | str]:
    """Return the folds that finished training: the numbered folds, or ["all"] if only fold "all" did."""
    finished = [path.parent for path in model.glob(f"fold_*/{CHECKPOINTS[0]}")]
    numbers = sorted(number for path in finished if (number := fold_number(path)) is not None)
    return [*numbers] or ["all" for path in finished if path.name == "fold_all"]


def _matching(models: Sequence[Path], parts: Sequence[str | None]) -> list[Path]:
    """Return the models whose trainer, plans and configuration equal `parts`; a part that is None matches any."""
    return [
        path
        for path in models
        if all(wanted in (None, actual) for wanted, actual in zip(parts, _parts(path), strict=False))
    ]


def _parts(model: Path) -> list[str]:
    return model.name.split("__")

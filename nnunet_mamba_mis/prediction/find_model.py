"""Find the trained model that is meant."""

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
    """Return the folder of a model in nnUNet_results.

    Args:
        dataset: Id or full name.
        trainer: Its trainer; where several models are trained and this is left out, nnUNetTrainerMambaMIS.
        plans: Its plans; likewise nnUNetPlans.
        configuration: Its configuration; likewise 2d.

    Raises:
        UserError: There is none, or it takes an option to choose one.
    """
    results = folder("nnUNet_results") / find_dataset_name(dataset)
    given = (trainer, plans, configuration)
    models = sorted(path for path in results.glob("*__*__*") if trained_folds(path))
    wanted = _matching(models, given)
    if not wanted:
        names = shortened([path.name for path in models]) or "none"
        raise UserError(f"no trained fold of such a model in {results}; models with trained folds: {names}")
    for part, default in enumerate(_DEFAULTS):
        only = [default if index == part else None for index in range(len(_DEFAULTS))]
        if len(wanted) > 1 and given[part] is None:
            wanted = _matching(wanted, only) or wanted
    if len(wanted) > 1:
        differ = [name for part, name in enumerate(_OPTIONS) if len({_parts(path)[part] for path in wanted}) > 1]
        names = shortened([path.name for path in wanted])
        raise UserError(f"{results} has several models, choose with {' '.join(differ)}: {names}")
    return wanted[0]


def trained_folds(model: Path) -> list[int | str]:
    """Return the folds whose training has ended: those with numbers, or else the fold "all"."""
    done = [path.parent for path in model.glob(f"fold_*/{CHECKPOINTS[0]}")]
    numbers = sorted(number for path in done if (number := fold_number(path)) is not None)
    return [*numbers] or ["all" for path in done if path.name == "fold_all"]


def _matching(models: Sequence[Path], parts: Sequence[str | None]) -> list[Path]:
    return [
        path for path in models if all(part in (None, found) for part, found in zip(parts, _parts(path), strict=False))
    ]


def _parts(model: Path) -> list[str]:
    return model.name.split("__")

"""The grid of trainings that the user asks for, checked before any of them starts."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mamba_mis.benchmark.running.jobs import Training
from nnunet_mamba_mis.benchmark.test_sets import TestSet, find_test_sets
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError

_SPLITS = "splits_final.json"
# nnU-Net's own, in nnUNetTrainer.do_split
_FOLDS, _SEED_OF_FOLDS = 5, 12345


def make_grid(
    datasets: Sequence[str],
    trainers: Sequence[str],
    plans: Sequence[str],
    configuration: str,
    folds: Sequence[int],
    seeds: Sequence[int | None],
    own_test_sets: bool = False,
    test_on: Sequence[str] = (),
) -> tuple[list[Training], dict[str, list[TestSet]]]:
    """Return all combinations, each once, and the test sets of each dataset.

    One fold of all trainers comes before the next fold.

    Args:
        datasets: ids or names.
        trainers: class names.
        plans: names of plans.
        configuration: of the plans.
        folds: numbers.
        seeds: or None for nnU-Net's own way, which seeds nothing.
        own_test_sets: whether models are tested on the test sets of their dataset.
        test_on: ids or names of other datasets that they are tested on.

    Raises:
        UserError: any of them cannot be trained; the text has all reasons.
    """
    results = results_folder()
    problems = [problem for trainer in trainers for problem in _problems_of_trainer(trainer)]
    names = _names("-d", datasets, problems)
    for name in names:
        problems += _problems_of_dataset(Path(nnUNet_preprocessed) / name, plans, configuration, folds)
    others = _names("--test-on", test_on, problems)
    test_sets = {name: _test_sets(name, own_test_sets, others, problems) for name in names}
    if any(test_sets.values()) and configuration == "3d_cascade_fullres":
        problems.append("-c 3d_cascade_fullres: test sets would need predictions of 3d_lowres; leave them out")
    if problems:
        raise UserError("\n  ".join(["nothing was started:", *problems]))
    grid = itertools.product(names, _each(seeds), _each(folds), _each(plans), _each(trainers))
    trainings = _each(
        Training(results, dataset, trainer, plan, configuration, fold, seed)
        for dataset, seed, fold, plan, trainer in grid
    )
    return trainings, test_sets


def write_missing_splits(jobs: Iterable[Training]) -> None:
    """Write the split that nnU-Net would: jobs that start together would write it and read each other's half of it."""
    for dataset, plans, configuration in {(job.dataset, job.plans, job.configuration): None for job in jobs}:
        folder = Path(nnUNet_preprocessed) / dataset
        if (folder / _SPLITS).exists():
            continue
        manager = PlansManager(str(folder / f"{plans}.json"))
        data = str(folder / manager.get_configuration(configuration).data_identifier)
        cases = sorted(infer_dataset_class(data).get_identifiers(data))
        if len(cases) < _FOLDS:
            raise UserError(f"{dataset} has {len(cases)} cases, too few for {_FOLDS} folds: write {folder / _SPLITS}")
        with atomic_write(folder / _SPLITS) as file:
            split = generate_crossval_split(cases, seed=_SEED_OF_FOLDS, n_splits=_FOLDS)
            file.write(json.dumps(split, indent=4).encode())


def results_folder() -> Path:
    """Return nnUNet_results.

    Raises:
        UserError: one of nnU-Net's variables is not set.
    """
    folders = {"nnUNet_raw": nnUNet_raw, "nnUNet_preprocessed": nnUNet_preprocessed, "nnUNet_results": nnUNet_results}
    for name, path in folders.items():
        if not path.is_set():
            raise UserError(f"{name} is not set: export {name}=/path (`mamba_mis doctor` says what for)")
    return Path(nnUNet_results).absolute()


def _each(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _names(option: str, datasets: Sequence[str], problems: list[str]) -> list[str]:
    """Full names; what is no dataset is added to the problems."""
    names = []
    for dataset in datasets:
        try:
            names.append(str(maybe_convert_to_dataset_name(dataset)))
        except ValueError:
            problems.append(f"{option} {dataset}: neither an id nor a name that begins with Dataset")
        except RuntimeError as error:
            problems.append(f"{option} {dataset}: {' '.join(str(error).split())}")
    return _each(names)


def _test_sets(dataset: str, own: bool, others: Sequence[str], problems: list[str]) -> list[TestSet]:
    file = Path(nnUNet_preprocessed) / dataset / "dataset.json"
    if not file.exists() or not (own or others):
        return []  # the former is a problem that is named already
    try:
        description = json.loads(file.read_text())
        description["file_ending"], description["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{file} is not a dataset.json of nnU-Net: {error!r}")
        return []
    return find_test_sets(Path(nnUNet_raw), description, dataset, own, others, problems)


def _problems_of_trainer(trainer: str) -> list[str]:
    # nnU-Net prints where it looks, and modules that it imports on the way warn
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = recursive_find_trainer_class_by_name(trainer)
        except AssertionError:
            return [f"{trainer} is not a trainer: it does not inherit from nnUNetTrainer"]
        except RuntimeError:
            return [f"there is no trainer {trainer}: nnU-Net and the folders of nnUNet_extTrainer have none"]
    if found.__name__ != trainer:
        return [f"{trainer} is another name of {found.__name__}, which names its results: give that"]
    return []


def _problems_of_dataset(folder: Path, plans: Sequence[str], configuration: str, folds: Sequence[int]) -> list[str]:
    number = int(folder.name[7:10])
    if not (folder / "dataset.json").exists() or not (folder / "gt_segmentations").is_dir():
        return [f"{folder.name} is not preprocessed: run nnUNetv2_plan_and_preprocess -d {number}"]
    problems = [problem for name in plans for problem in _problems_of_plans(folder, name, configuration)]
    try:
        splits = json.loads((folder / _SPLITS).read_text()) if (folder / _SPLITS).exists() else range(_FOLDS)
    except ValueError as error:
        return [*problems, f"{folder / _SPLITS} cannot be read: {error}"]
    # nnU-Net would make a random split of its own for such a fold
    missing = [str(fold) for fold in folds if not 0 <= fold < len(splits)]
    if missing:
        problems.append(f"--folds {' '.join(missing)}: {folder.name} has folds 0 to {len(splits) - 1} ({_SPLITS})")
    return problems


def _problems_of_plans(folder: Path, name: str, configuration: str) -> list[str]:
    path = folder / f"{name}.json"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in folder.glob("*Plans*.json"))) or "none"
        return [f"{folder.name} has no plans {name} ({path}); there are: {there}"]
    try:
        manager = PlansManager(str(path))
        if manager.plans_name != name:
            return [
                f"{path} has the plans_name {manager.plans_name}, by which nnU-Net names results: write {name} there"
            ]
        if configuration not in manager.available_configurations:
            there = ", ".join(manager.available_configurations)
            return [f"{path} has no configuration {configuration}; there are: {there}"]
        data = folder / manager.get_configuration(configuration).data_identifier
    except (ValueError, KeyError) as error:
        return [f"{path} is not a plans file of nnU-Net: {error!r}"]
    if not data.is_dir() or not any(data.iterdir()):
        command = f"nnUNetv2_preprocess -d {int(folder.name[7:10])} -plans_name {name} -c {configuration}"
        return [f"{folder.name} is not preprocessed for {name} {configuration} ({data}): run {command}"]
    return []

"""Build the requested grid of training jobs, and check it before any of them starts."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.running.jobs import Candidate, Training
from nnunet_mamba_mis.benchmark.test_sets import TestSet, find_test_sets
from nnunet_mamba_mis.nnunet.dataset import FOLDS, Dataset, Splits
from nnunet_mamba_mis.nnunet.paths import (
    DATASET_FILE,
    FOLDERS,
    SPLITS_FILE,
    dataset_id,
    find_dataset_name,
    folder,
)
from nnunet_mamba_mis.nnunet.plans import read_plans
from nnunet_mamba_mis.nnunet.records import read_record_if_usable
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import counted

# the same as in nnUNetTrainer.do_split
_SEED_OF_FOLDS = 12345


def make_grid(
    datasets: Sequence[str],
    trainers: Sequence[str],
    plans: Sequence[str],
    configuration: str,
    folds: Sequence[int],
    seeds: Sequence[int | None],
    own_test_sets: bool = False,
    test_on: Sequence[str] = (),
    probabilities: bool = False,
) -> tuple[list[Training], dict[str, list[TestSet]]]:
    """Return the training jobs of all combinations, and the test sets of each dataset.

    All trainers train one fold before any trains the next.

    Args:
        datasets: Ids or names of datasets.
        trainers: Class names of trainers.
        plans: Names of plans.
        configuration: Configuration of the plans.
        folds: Numbers of folds.
        seeds: Seeds; None for nnU-Net's unseeded training.
        own_test_sets: Whether to test models on the test sets of their dataset.
        test_on: Ids or names of other datasets to test on.
        probabilities: Whether jobs save probabilities.

    Raises:
        UserError: A combination cannot be trained or tested; the message lists all problems.
    """
    raw, preprocessed, results = map(folder, FOLDERS)
    problems = [problem for trainer in trainers for problem in _problems_of_trainer(trainer)]
    names = _full_names("-d", datasets, problems)
    for name in names:
        problems += _problems_of_dataset(preprocessed / name, plans, configuration, folds)
    others = _full_names("--test-on", test_on, problems)
    test_sets: dict[str, list[TestSet]] = {name: [] for name in names}
    for name in names if own_test_sets or others else ():
        # a missing or unusable file has been reported already
        if (description := read_record_if_usable(preprocessed / name / DATASET_FILE, Dataset)) is not None:
            test_sets[name] = find_test_sets(raw, description, name, own_test_sets, others, problems)
    if any(test_sets.values()) and configuration == "3d_cascade_fullres":
        problems.append("-c 3d_cascade_fullres: test sets need predictions of 3d_lowres first; omit the test sets")
    if problems:
        raise UserError("\n  ".join([f"nothing was started; {counted(len(problems), 'problem')}:", *problems]))
    grid = itertools.product(names, *map(_each_once, (seeds, folds, plans, trainers)))
    trainings = [
        Training(Candidate(results.absolute(), dataset, Model(trainer, plan, configuration), seed), fold, probabilities)
        for dataset, seed, fold, plan, trainer in grid
    ]
    return trainings, test_sets


def write_missing_splits(trainings: Iterable[Training]) -> None:
    """Write the splits that nnU-Net would write; jobs that start together could otherwise read a half-written file.

    Raises:
        UserError: A dataset has too few cases.
    """
    for candidate in dict.fromkeys(training.candidate for training in trainings):
        dataset = folder("nnUNet_preprocessed") / candidate.dataset
        splits = dataset / SPLITS_FILE
        if splits.exists():
            continue
        data = str(_preprocessed(dataset, candidate.model.plans, candidate.model.configuration))
        cases = sorted(infer_dataset_class(data).get_identifiers(data))
        if len(cases) < FOLDS:
            raise UserError(
                f"{dataset.name} has {len(cases)} cases, too few for {FOLDS} folds: provide your own folds in {splits}"
            )
        with atomic_write(splits) as file:
            split = generate_crossval_split(cases, seed=_SEED_OF_FOLDS, n_splits=FOLDS)
            file.write(json.dumps(split, indent=4).encode())


def _each_once(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _full_names(option: str, datasets: Sequence[str], problems: list[str]) -> list[str]:
    """Return the full names of datasets; unknown ones are added to the problems."""
    names = []
    for dataset in datasets:
        try:
            names.append(find_dataset_name(dataset))
        except UserError as error:
            problems.append(f"{option} {error}")
    return _each_once(names)


def _problems_of_trainer(trainer: str) -> list[str]:
    # nnU-Net prints where it searches, and modules that it imports may warn
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer_class = recursive_find_trainer_class_by_name(trainer)
        except AssertionError:
            return [f"{trainer} is not a trainer: it does not inherit from nnUNetTrainer"]
        except RuntimeError:
            return [f"trainer {trainer} was not found in nnU-Net or in the folders of nnUNet_extTrainer"]
    if trainer_class.__name__ != trainer:
        return [
            f"{trainer} is an alias of {trainer_class.__name__}, which is the name in the results: give "
            f"{trainer_class.__name__}"
        ]
    return []


def _problems_of_dataset(dataset: Path, plans: Sequence[str], configuration: str, folds: Sequence[int]) -> list[str]:
    if not (dataset / DATASET_FILE).exists() or not (dataset / "gt_segmentations").is_dir():
        command = f"nnUNetv2_plan_and_preprocess -d {dataset_id(dataset.name)}"
        return [f"{dataset.name} is not preprocessed: run {command}"]
    problems = [problem for name in plans for problem in _problems_of_plans(dataset, name, configuration)]
    read_record_if_usable(dataset / DATASET_FILE, Dataset, problems)
    number = FOLDS
    if (dataset / SPLITS_FILE).exists():
        splits = read_record_if_usable(dataset / SPLITS_FILE, Splits, problems)
        if splits is None:
            return problems
        number = len(splits)
    # for a fold that the splits lack, nnU-Net would make a random split
    missing = [str(fold) for fold in folds if not 0 <= fold < number]
    if missing:
        problems.append(f"--folds {' '.join(missing)}: {dataset.name} has folds 0 to {number - 1} ({SPLITS_FILE})")
    return problems


def _problems_of_plans(dataset: Path, name: str, configuration: str) -> list[str]:
    path = dataset / f"{name}.json"
    existing = sorted(file.stem for file in dataset.glob("*Plans*.json"))
    if path.name not in os.listdir(dataset):
        return [f"{dataset.name} has no plans {name} ({path}); it has: {', '.join(existing) or 'none'}"]
    try:
        plans = read_plans(path)
        if plans.plans_name != name:
            return [f"{path}: plans_name is {plans.plans_name}, which nnU-Net names results by: change it to {name}"]
        if configuration not in plans.configurations:
            return [f"{path} has no configuration {configuration}; it has: {', '.join(plans.configurations)}"]
        data = _preprocessed(dataset, name, configuration)
    except UserError as error:
        return [str(error)]
    if not data.is_dir() or not any(data.iterdir()):
        command = f"nnUNetv2_preprocess -d {dataset_id(dataset.name)} -plans_name {name} -c {configuration}"
        return [f"{dataset.name} is not preprocessed for {name} {configuration} ({data}): run {command}"]
    return []


def _preprocessed(dataset: Path, plans: str, configuration: str) -> Path:
    """Return the folder of the data preprocessed for a configuration."""
    path = dataset / f"{plans}.json"
    identifier = read_plans(path).configuration(configuration).data_identifier
    if identifier is None:
        raise UserError(f"{path}: configurations.{configuration}.data_identifier: Field required")
    return dataset / identifier

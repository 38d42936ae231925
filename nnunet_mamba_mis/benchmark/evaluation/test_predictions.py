"""Find the test sets that ensembles of folds have predicted, and report what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_mamba_mis.benchmark.evaluation.folds import Fold, FoldSet, Truth, groups_of
from nnunet_mamba_mis.benchmark.label_maps import labelled_cases
from nnunet_mamba_mis.benchmark.model import Model, seed_folders
from nnunet_mamba_mis.benchmark.test_sets import TestSet, parse_predictions_folder
from nnunet_mamba_mis.dataset_conversion.overlaps import REPORT_FILE, trained_on
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE, not_set
from nnunet_mamba_mis.nnunet.results import CHECKPOINTS, SUMMARY_FILE, fold_folder
from nnunet_mamba_mis.utils.text import shortened


def find_tests(
    truth: Truth, roots: Sequence[Path], models: Sequence[Model], raw: Path | None
) -> tuple[list[tuple[Truth, FoldSet]], list[str]]:
    """Find the test sets that models of a dataset have predicted with ensembles of their folds.

    Args:
        truth: Ground truth of the dataset.
        roots: As for `find_folds`.
        models: Models to include, in order.
        raw: Folder nnUNet_raw, if set.

    Returns:
        Ground truth and predictions of each test set and ensemble, and descriptions of results that cannot be used.
    """
    problems: list[str] = []
    predicted: dict[TestSet, dict[str, list[Fold]]] = {}
    for fold, test_set in _ensembles(truth, roots, models):
        if problem := _unfinished(fold):
            problems.append(f"{fold} on {test_set} is left out: {problem}")
        else:
            predicted.setdefault(test_set, {}).setdefault(str(fold.number), []).append(fold)
    tests = []
    for test_set, ensembles in predicted.items():
        if raw is None:
            problems.append(f"predictions of {test_set} are left out: {not_set('nnUNet_raw')}")
            continue
        truth_of_test = _truth_of_test(truth, test_set, raw)
        if not truth_of_test.labels.is_dir():
            problems.append(f"predictions of {test_set} are left out: {truth_of_test.labels} does not exist")
            continue
        for ensemble, folds in ensembles.items():
            # predictions of different ensembles are not compared: each ensemble has its own section
            title = truth_of_test.test_set + f" (folds {ensemble})" * (len(ensembles) > 1)
            titled = replace(truth_of_test, test_set=title)
            fold_set = _read(titled, folds, models)
            fold_set.problems.extend(_leaks(truth, titled))
            tests.append((titled, fold_set))
    return tests, problems


def _ensembles(truth: Truth, roots: Sequence[Path], models: Sequence[Model]) -> Iterator[tuple[Fold, TestSet]]:
    """Yield the ensemble and test set of each folder of predictions; the ensemble's `predictions` stay empty."""
    for model in models:
        for seed, root in seed_folders(roots):
            for file in sorted((root / truth.name / str(model)).glob(f"test_folds_*/*/*/{DATASET_FILE}")):
                if parsed := parse_predictions_folder(file.parent):
                    folds, test_set = parsed
                    yield Fold(model, seed, "+".join(map(str, folds)), file.parent, {}), test_set


def _unfinished(fold: Fold) -> str:
    """Return why predictions cannot be used, or "" if they can."""
    summary, model = fold.folder / SUMMARY_FILE, fold.folder.parents[2]
    if not summary.is_file():
        return f"its evaluation is not finished, as {summary} does not exist"
    for number in str(fold.number).split("+"):
        checkpoint = fold_folder(model, number) / CHECKPOINTS[0]
        if checkpoint.is_file() and checkpoint.stat().st_mtime > summary.stat().st_mtime:
            return f"fold {number} has been trained again since"
    return ""


def _truth_of_test(truth: Truth, test_set: TestSet, raw: Path) -> Truth:
    folder = raw / test_set.dataset
    return replace(
        truth,
        labels=folder / test_set.labels_part,
        images=folder / test_set.part,
        validation=[],
        group_of=groups_of(folder),
        test_set=test_set.part if test_set.dataset == truth.name else str(test_set),
    )


def _read(truth: Truth, ensembles: Sequence[Fold], models: Sequence[Model]) -> FoldSet:
    """Return the ensembles with their prediction files, and descriptions of missing predictions."""
    ending = truth.classes.file_ending
    folds, problems = [], []
    for fold in ensembles:
        files = {case: fold.folder / f"{case}{ending}" for case in labelled_cases(truth.labels, ending)}
        if missing := [file.name for file in files.values() if not file.is_file()]:
            problems.append(f"{fold}: predictions are missing: {shortened(missing)}")
        folds.append(replace(fold, predictions={case: file for case, file in files.items() if file.is_file()}))
    predicted_by = {fold.model for fold in ensembles}
    if missing_models := [str(model) for model in models if model not in predicted_by]:
        problems.append(f"not predicted by {', '.join(missing_models)} with folds {ensembles[0].number}")
    return FoldSet(folds, problems)


def _leaks(truth: Truth, truth_of_test: Truth) -> Iterator[str]:
    """Yield warnings about test cases that are also training images, according to reports of `mamba_mis convert`."""
    tested = truth_of_test.labels.parent
    cases = labelled_cases(truth_of_test.labels, truth.classes.file_ending)
    shared = trained_on(tested.with_name(truth.name), tested, cases)
    if shared is None:
        yield (
            f"it is not known whether any of these cases are training images of {truth.name}: that requires both "
            f"datasets to have a {REPORT_FILE} of `mamba_mis convert`"
        )
    elif shared:
        yield (
            f"{len(shared)} of these cases are (nearly) identical to training images of {truth.name}, which makes the "
            f"scores too good: {shortened(shared)}"
        )

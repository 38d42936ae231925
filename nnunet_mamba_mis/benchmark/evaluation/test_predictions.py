"""Find the test sets that ensembles of folds have predicted, and name what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_mamba_mis.benchmark.cost.measurement import Model
from nnunet_mamba_mis.benchmark.evaluation.folds import Fold, Found, Truth, groups_of, seeds_of, shortened
from nnunet_mamba_mis.benchmark.test_sets import ENSEMBLE, TestSet, labelled_cases
from nnunet_mamba_mis.dataset_conversion.overlaps import REPORT_FILE, trained_on


def find_tests(
    truth: Truth, roots: Sequence[Path], models: Sequence[Model], raw: Path | None
) -> tuple[list[tuple[Truth, Found]], list[str]]:
    """Find the test sets that models of a dataset have predicted with ensembles of their folds.

    Args:
        truth: of the dataset.
        roots: as for `find_folds`.
        models: to look at, in their order.
        raw: nnUNet_raw, if set.

    Returns:
        Ground truth and predictions of each test set and ensemble; and what cannot be used, in words.
    """
    problems: list[str] = []
    predicted: dict[TestSet, dict[str, list[Fold]]] = {}
    for fold, test_set in _ensembles(truth, roots, models):
        if problem := _unfinished(fold):
            problems.append(f"{fold} on {test_set} is left out: {problem}")
        else:
            predicted.setdefault(test_set, {}).setdefault(str(fold.number), []).append(fold)
    found = []
    for test_set, of_ensemble in predicted.items():
        truth_of_test = _truth_of_test(truth, test_set, raw)
        if not truth_of_test.labels.is_dir():
            problems.append(f"predictions of {test_set} are left out: there is no folder {truth_of_test.labels}")
            continue
        for ensemble, folds in of_ensemble.items():
            # what two ensembles have predicted is not compared, and has two tables
            title = truth_of_test.test_set + f" (folds {ensemble})" * (len(of_ensemble) > 1)
            named = replace(truth_of_test, test_set=title)
            found_here = _read(named, folds, models)
            found_here.problems.extend(_leaks(truth, test_set, named))
            found.append((named, found_here))
    return found, problems


def _ensembles(truth: Truth, roots: Sequence[Path], models: Sequence[Model]) -> Iterator[tuple[Fold, TestSet]]:
    """Yield what was begun to be predicted, without the files."""
    for model in models:
        for seed, root in seeds_of(roots):
            for file in sorted((root / truth.name / str(model)).glob("test_folds_*/*/*/dataset.json")):
                folder = file.parent
                match, test_set = ENSEMBLE.fullmatch(folder.parts[-3]), TestSet.of_folder(*folder.parts[-2:])
                if match and test_set:
                    yield Fold(model, seed, match[1].replace("_", "+"), folder, {}), test_set


def _unfinished(fold: Fold) -> str:
    """Why predictions cannot be used; empty if they can."""
    summary, model = fold.folder / "summary.json", fold.folder.parents[2]
    if not summary.is_file():
        return f"it has no {summary}, so its evaluation has not ended"
    for number in str(fold.number).split("+"):
        checkpoint = model / f"fold_{number}" / "checkpoint_final.pth"
        if checkpoint.is_file() and checkpoint.stat().st_mtime > summary.stat().st_mtime:
            return f"fold {number} was trained again since"
    return ""


def _truth_of_test(truth: Truth, test_set: TestSet, raw: Path | None) -> Truth:
    folder = (raw or Path("nnUNet_raw (which is not set)")) / test_set.dataset
    return replace(
        truth,
        labels=folder / test_set.labels_part,
        images=folder / test_set.part,
        validation=[],
        group_of=groups_of(folder),
        test_set=test_set.part if test_set.dataset == truth.name else str(test_set),
    )


def _read(truth: Truth, ensembles: Sequence[Fold], models: Sequence[Model]) -> Found:
    """Return ensembles with the files that they have predicted."""
    ending = truth.description["file_ending"]
    folds, problems = [], []
    for fold in ensembles:
        files = {case: fold.folder / f"{case}{ending}" for case in labelled_cases(truth.labels, ending)}
        if missing := [file.name for file in files.values() if not file.is_file()]:
            problems.append(f"{fold}: predictions are not there: {shortened(missing)}")
        folds.append(replace(fold, predictions={case: file for case, file in files.items() if file.is_file()}))
    there = {fold.model for fold in ensembles}
    if lacking := [str(model) for model in models if model not in there]:
        problems.append(f"not predicted by {', '.join(lacking)} with folds {ensembles[0].number}")
    return Found(folds, problems)


def _leaks(truth: Truth, test_set: TestSet, truth_of_test: Truth) -> Iterator[str]:
    """Say which cases were trained on, as far as `mamba_mis convert` recorded what would tell."""
    tested = truth_of_test.labels.parent
    cases = labelled_cases(truth_of_test.labels, truth.description["file_ending"])
    shared = trained_on(tested.with_name(truth.name), tested, cases)
    if shared is None:
        yield (
            f"whether any of these cases are training images of {truth.name} is not known, as not both datasets have a "
            f"{REPORT_FILE} of `mamba_mis convert`"
        )
    elif shared:
        yield (
            f"{len(shared)} of these cases are training images of {truth.name}, or nearly the same, which makes the "
            f"scores too good: {shortened(shared)}"
        )

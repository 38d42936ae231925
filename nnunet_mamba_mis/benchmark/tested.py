"""Find the test sets that ensembles of folds have predicted, and name what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_mamba_mis.benchmark.cost import Model
from nnunet_mamba_mis.benchmark.results import Fold, Found, Truth, groups_of, seeds_of, shortened
from nnunet_mamba_mis.benchmark.test_sets import ENSEMBLE, TestSet
from nnunet_mamba_mis.dataset_conversion.overlaps import trained_on


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
    predicted: dict[TestSet, dict[str, list[Fold]]] = {}
    for model in models:
        for seed, root in seeds_of(roots):
            for folder in sorted((root / truth.name / str(model)).glob("test_folds_*/*/*")):
                match, test_set = ENSEMBLE.fullmatch(folder.parts[-3]), TestSet.of_folder(*folder.parts[-2:])
                if match and test_set:
                    fold = Fold(model, seed, match[1].replace("_", "+"), folder, {})
                    predicted.setdefault(test_set, {}).setdefault(str(fold.number), []).append(fold)
    found, problems = [], []
    for test_set, ensembles in predicted.items():
        truth_of_test = _truth_of_test(truth, test_set, raw)
        if not truth_of_test.labels.is_dir():
            problems.append(f"predictions of {test_set} are left out: there is no folder {truth_of_test.labels}")
            continue
        for folds, of_models in ensembles.items():
            several = f" (folds {folds})" * (len(ensembles) > 1)
            of_ensemble = replace(truth_of_test, test_set=truth_of_test.test_set + several)
            found_here = _read_test(of_ensemble, of_models, models)
            if found_here.folds:
                found_here.problems.extend(_leaks(truth, test_set, raw, truth_of_test))
                found.append((of_ensemble, found_here))
            else:
                problems += found_here.problems
    return found, problems


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


def _read_test(truth: Truth, predicted: Sequence[Fold], models: Sequence[Model]) -> Found:
    """Return the ensembles that have predicted a test set to the end, with their files."""
    ending = truth.description["file_ending"]
    labelled = sorted(file.name.removesuffix(ending) for file in truth.labels.glob(f"*{ending}"))
    folds, problems = [], []
    for fold in predicted:
        summary = fold.folder / "summary.json"
        if not summary.is_file():
            problems.append(
                f"{fold} on {truth.test_set} is left out: it has no {summary}, so its evaluation has not ended"
            )
            continue
        files = {case: fold.folder / f"{case}{ending}" for case in labelled}
        if missing := [file.name for file in files.values() if not file.is_file()]:
            problems.append(f"{fold} on {truth.test_set}: predictions are not there: {shortened(missing)}")
        folds.append(replace(fold, predictions={case: file for case, file in files.items() if file.is_file()}))
    there = {fold.model for fold in predicted}
    if lacking := [str(model) for model in models if model not in there]:
        problems.append(f"not predicted by {', '.join(lacking)} with folds {predicted[0].number}")
    return Found(folds, problems)


def _leaks(truth: Truth, test_set: TestSet, raw: Path | None, truth_of_test: Truth) -> Iterator[str]:
    """Say which cases were trained on, as far as `mamba_mis convert` recorded what would tell."""
    assert raw is not None
    cases = [file.name.split(".")[0] for file in truth_of_test.labels.iterdir()]
    if shared := trained_on(raw / truth.name, raw / test_set.dataset, cases):
        yield (
            f"{len(shared)} of these cases are training images of {truth.name}, or nearly the same, which makes the "
            f"scores too good: {shortened(shared)}"
        )

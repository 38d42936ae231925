"""Decide where each case goes, which folds there are, and what to warn of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.base import TRAINING, Dataset
from nnunet_mamba_mis.dataset_conversion.check import Checked, named
from nnunet_mamba_mis.dataset_conversion.duplicates import chain, groups_of
from nnunet_mamba_mis.dataset_conversion.splits import Split, grouped_folds, groups_to_keep, official_split
from nnunet_mamba_mis.utils.errors import UserError

_HELD_OUT = "holdout"


@dataclass(frozen=True)
class Options:
    """What is to be done, besides converting.

    Args:
        resize: side of a square to bring all to, in pixels; None keeps sizes.
        keep_aspect: pad to the square rather than stretch.
        official: one fold of the challenge's own training and validation sets.
        skip_bad: leave out what has a problem rather than fail.
        dry_run: stop after checking.
        overwrite: replace a dataset of the same id and name.
        hold_out: so many training cases, spread evenly over their sorted identifiers, become a test set.
    """

    resize: int | None = None
    keep_aspect: bool = False
    official: bool = False
    skip_bad: bool = False
    dry_run: bool = False
    overwrite: bool = False
    hold_out: int = 0


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Args:
        subset_of: where each case goes.
        suffixes: what follows "images" and "labels" in the folders of each subset.
        split_rule: of the folds, in words.
        splits: the folds; none if all training cases belong together.
        groups: training cases that the folds keep together, two and more.
        duplicates: pairs of identifiers that join all with the same image, or nearly so.
        warnings: worth knowing before the dataset is used.
    """

    subset_of: dict[str, str]
    suffixes: dict[str, str]
    split_rule: str
    splits: list[Split]
    groups: list[list[str]]
    duplicates: list[tuple[str, str]]
    warnings: list[str]


def make_plan(dataset: Dataset, options: Options, folders: Sequence[Path], checked: Checked) -> Plan:
    """Return what is to be written.

    Args:
        dataset: what it is.
        options: as asked for.
        folders: that hold the source.
        checked: what is in it.

    Raises:
        UserError: there is no case for training, or no official validation set, or a table of groups is missing.
    """
    published = {facts.case.identifier: facts.case.subset for facts in checked.facts}
    duplicates = [(one.case.identifier, other.case.identifier) for one, other in checked.duplicates]
    validation = _validation(dataset, published) if options.official else set()
    subset_of = published | dict.fromkeys(validation, TRAINING)
    subset_of |= dict.fromkeys(_held_out(subset_of, options.hold_out), _HELD_OUT)
    if options.official:
        rule = "one fold: the official training and validation sets"
        splits = official_split(_training(subset_of), validation)
        groups: list[list[str]] = []
    else:
        rule, splits, groups = _grouped_splits(dataset, folders, checked, subset_of, duplicates)
    # in the official split, the validation set is apart
    leaks = _leaks(duplicates, published if options.official else subset_of)
    warnings = [*checked.notes, *dataset.warnings(published), *leaks]
    if not splits:
        warnings.append("all training images belong together, so there are no splits: nnU-Net will make its own")
    return Plan(subset_of, _suffixes(subset_of), rule, splits, groups, duplicates, warnings)


def _training(subset_of: Mapping[str, str]) -> list[str]:
    return [identifier for identifier, subset in subset_of.items() if subset == TRAINING]


def _validation(dataset: Dataset, published: Mapping[str, str]) -> set[str]:
    found = {identifier for identifier, subset in published.items() if subset == dataset.official_validation}
    if not found:
        raise UserError(
            f"--official-split: found no {dataset.official_validation} set in the source. Give its folders or archives "
            "with -i, too"
        )
    return found


def _held_out(subset_of: Mapping[str, str], number: int) -> list[str]:
    training = _training(subset_of)
    if not training:
        raise UserError("no training case is left")
    if not 0 <= number < len(training):
        raise UserError(f"cannot hold out {number} of {len(training)} training cases")
    return [training[(2 * i + 1) * len(training) // (2 * number)] for i in range(number)]


def _suffixes(subset_of: Mapping[str, str]) -> dict[str, str]:
    test_sets = sorted(set(subset_of.values()) - {TRAINING})
    return {TRAINING: TRAINING} | {subset: "Ts" if len(test_sets) == 1 else f"Ts_{subset}" for subset in test_sets}


def _grouped_splits(
    dataset: Dataset,
    folders: Sequence[Path],
    checked: Checked,
    subset_of: Mapping[str, str],
    duplicates: Sequence[tuple[str, str]],
) -> tuple[str, list[Split], list[list[str]]]:
    group_of: Mapping[str, str] = {}
    shared = "duplicates and near duplicates"
    if dataset.grouping:
        group_of = dataset.grouping.groups(folders, [facts.case for facts in checked.facts])
        shared = f"{dataset.grouping.rule}, {shared}"
    # two training images may be joined by way of one in a test set
    alike = groups_of(list(subset_of), duplicates)
    in_training = [[identifier for identifier in group if subset_of[identifier] == TRAINING] for group in alike]
    training = _training(subset_of)
    groups = groups_to_keep(training, group_of, chain([group for group in in_training if group]))
    folds = grouped_folds(training, groups)
    return f"{len(folds)} folds that keep together: {shared}", folds, [group for group in groups if len(group) > 1]


def _leaks(duplicates: Sequence[tuple[str, str]], subset_of: Mapping[str, str]) -> list[str]:
    """Return warnings of images that are there twice, in one set or, worse, in two."""
    pairs_of: dict[tuple[str, str], list[str]] = {}
    for one, other in duplicates:
        first, *_, second = sorted([subset_of[one], subset_of[other]], key=lambda subset: (subset != TRAINING, subset))
        pairs_of.setdefault((first, second), []).append(f"{one} = {other}")
    warnings = []
    for (first, second), pairs in sorted(pairs_of.items()):
        if first == second:
            warnings.append(f"{len(pairs)} pairs of images in {_called(first)} are the same or nearly: {named(pairs)}")
        else:
            sets = f"{_called(first)} and {_called(second)}"
            warnings.append(f"{sets} share {len(pairs)} images, the same or nearly, which leaks: {named(pairs)}")
    return warnings


def _called(subset: str) -> str:
    return "the training set" if subset == TRAINING else f"the {subset} set"

"""Decide on the subset of each case, the folds and the warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.check import Checked
from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING, Dataset
from nnunet_mamba_mis.dataset_conversion.groups import chain, groups_of
from nnunet_mamba_mis.dataset_conversion.leaks import divided_groups, shared_images
from nnunet_mamba_mis.dataset_conversion.options import Options
from nnunet_mamba_mis.dataset_conversion.splits import Split, grouped_folds, groups_to_keep, official_split
from nnunet_mamba_mis.nnunet.dataset import first_fold
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import counted

# name of the test set that --hold-out makes
HELD_OUT = "holdout"


@dataclass(frozen=True)
class Plan:
    """What to write.

    Args:
        subset_of: Subset of each case.
        suffixes: What follows "images" and "labels" in the names of each subset's folders.
        split_rule: Description of how the folds were made.
        splits: The folds; none if all training cases belong together.
        first_fold: The fold to train first, as nnU-Net names it.
        groups: Groups of two or more training cases that the folds keep together.
        warnings: What to know before using the dataset.
    """

    subset_of: dict[str, str]
    suffixes: dict[str, str]
    split_rule: str
    splits: list[Split]
    first_fold: str
    groups: list[list[str]]
    warnings: list[str]


def make_plan(dataset: Dataset, options: Options, folders: Sequence[Path], checked: Checked) -> Plan:
    """Return what to write.

    Args:
        dataset: The dataset.
        options: Options of the conversion.
        folders: Source folders.
        checked: Contents of the source.

    Raises:
        UserError: No training case is left, or the official validation set or a table of groups is missing.
    """
    published = {facts.case.identifier: facts.case.subset for facts in checked.facts}
    group_of = dataset.grouping.groups(folders, [facts.case for facts in checked.facts]) if dataset.grouping else {}
    shared = dataset.grouping.rule if dataset.grouping else ""
    if options.official:
        # the validation set stays separate from training, though nnU-Net expects both in one folder
        leaks = shared_images(checked.duplicates, published)
        validation = _validation(dataset, published)
        subset_of = published | dict.fromkeys(validation, TRAINING)
        rule, groups = "one fold: the official training and validation sets", []
        splits = official_split(_training(subset_of), validation)
    else:
        subset_of = published | dict.fromkeys(_held_out(published, options.hold_out), HELD_OUT)
        leaks = shared_images(checked.duplicates, subset_of) + divided_groups(shared, group_of, subset_of, HELD_OUT)
        groups = _groups(subset_of, group_of, checked.duplicates)
        splits = grouped_folds(_training(subset_of), groups)
        kept = " and by ".join(filter(None, (shared, "duplicate and near-duplicate images")))
        rule = f"{len(splits)} folds, grouped by {kept}"
        groups = [group for group in groups if len(group) > 1]
    warnings = [*checked.notes, *dataset.warnings(subset_of), *leaks]
    training = _training(subset_of)
    fold = first_fold(len(training), bool(splits))
    if not splits:
        reason = "all training images belong to one group" if len(training) > 1 else "there is only one training image"
        consequence = "nnU-Net will make its own" if fold == "0" else "train fold `all`"
        warnings.append(f"no splits were made, as {reason}: {consequence}")
    return Plan(subset_of, _suffixes(subset_of), rule, splits, fold, groups, warnings)


def _training(subset_of: Mapping[str, str]) -> list[str]:
    return [identifier for identifier, subset in subset_of.items() if subset == TRAINING]


def _validation(dataset: Dataset, published: Mapping[str, str]) -> set[str]:
    validation = {identifier for identifier, subset in published.items() if subset == dataset.official_validation}
    if not validation:
        raise UserError(
            f"--official-split: the source contains no {dataset.official_validation} set. Give its folders or archives "
            "with -i, too"
        )
    return validation


def _held_out(subset_of: Mapping[str, str], number: int) -> list[str]:
    training = _training(subset_of)
    if not training:
        raise UserError("no training case is left: every one has a problem")
    if number >= len(training):
        raise UserError(
            f"--hold-out {number}: the source has only {counted(len(training), 'training case')}, and one must remain"
        )
    return [training[(2 * i + 1) * len(training) // (2 * number)] for i in range(number)]


def _suffixes(subset_of: Mapping[str, str]) -> dict[str, str]:
    test_sets = sorted(set(subset_of.values()) - {TRAINING})
    return {TRAINING: TRAINING} | {subset: "Ts" if len(test_sets) == 1 else f"Ts_{subset}" for subset in test_sets}


def _groups(
    subset_of: Mapping[str, str], group_of: Mapping[str, str], duplicates: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """Return the training cases in groups that no split may divide."""
    # two training images may be connected through a test image
    alike = groups_of(list(subset_of), duplicates)
    in_training = [[identifier for identifier in group if subset_of[identifier] == TRAINING] for group in alike]
    return groups_to_keep(_training(subset_of), group_of, chain([group for group in in_training if group]))

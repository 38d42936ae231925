"""Warn of images that a dataset trains on and tests on, or holds twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING
from nnunet_mamba_mis.dataset_conversion.groups import groups_of
from nnunet_mamba_mis.utils.text import counted, shortened


def shared_images(duplicates: Sequence[tuple[str, str]], subset_of: Mapping[str, str]) -> list[str]:
    """Return warnings of images that exist twice, in one set or, worse, in two.

    Args:
        duplicates: Pairs that join all images that are the same, or nearly; two may be joined by way of a third.
        subset_of: Where each case goes.
    """
    within: dict[str, list[str]] = {}
    between: dict[tuple[str, str], list[str]] = {}
    for group in groups_of(list(subset_of), duplicates):
        members: dict[str, list[str]] = {}
        for identifier in group:
            members.setdefault(subset_of[identifier], []).append(identifier)
        subsets = sorted(members, key=lambda subset: (subset != TRAINING, subset))
        for subset in subsets:
            if len(members[subset]) > 1:
                within.setdefault(subset, []).append(" = ".join(members[subset]))
        for first, second in combinations(subsets, 2):
            alike = " = ".join([*members[first], *members[second]])
            between.setdefault((first, second), []).append(alike)
    return [
        f"{_called(subset)} holds {counted(len(groups), 'image')} more than once, the same or nearly: "
        f"{shortened(groups)}"
        for subset, groups in sorted(within.items())
    ] + [
        f"{_called(first)} and {_called(second)} share {counted(len(groups), 'image')}, the same or nearly, which "
        f"leaks: {shortened(groups)}"
        for (first, second), groups in sorted(between.items())
    ]


def _called(subset: str) -> str:
    return "the training set" if subset == TRAINING else f"the {subset} set"


def divided_groups(rule: str, group_of: Mapping[str, str], subset_of: Mapping[str, str], subset: str) -> list[str]:
    """Return a warning if a test set, cut from training cases, has cases of groups that are in training too.

    Args:
        rule: What the cases of a group share, in a few words.
        group_of: The group of each identifier that has one.
        subset_of: Where each case goes.
        subset: The test set.
    """
    trained = {group_of[identifier] for identifier in group_of if subset_of[identifier] == TRAINING}
    leaking = [
        identifier for identifier, where in subset_of.items() if where == subset and group_of.get(identifier) in trained
    ]
    if not leaking:
        return []
    return [
        f"the training set shares groups ({rule}) with {counted(len(leaking), 'case')} of {_called(subset)}, which "
        f"leaks: {shortened(leaking)}"
    ]

"""Warn about images that are in both training and test data, or exist twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING
from nnunet_mamba_mis.dataset_conversion.groups import groups_of
from nnunet_mamba_mis.utils.text import counted, shortened


def shared_images(duplicates: Sequence[tuple[str, str]], subset_of: Mapping[str, str]) -> list[str]:
    """Return warnings about duplicate images within a subset and, worse, across subsets.

    Args:
        duplicates: Pairs that connect all (nearly) identical images; two may be connected through a third.
        subset_of: Subset of each case.
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
        f"{_described(subset)} contains {counted(len(groups), 'image')} more than once (identical or nearly so): "
        f"{shortened(groups)}"
        for subset, groups in sorted(within.items())
    ] + [
        f"data leak: {_described(first)} and {_described(second)} share {counted(len(groups), 'image')} (identical or "
        f"nearly so): {shortened(groups)}"
        for (first, second), groups in sorted(between.items())
    ]


def _described(subset: str) -> str:
    return "the training set" if subset == TRAINING else f"the {subset} set"


def divided_groups(rule: str, group_of: Mapping[str, str], subset_of: Mapping[str, str], subset: str) -> list[str]:
    """Return a warning if a test set taken from the training cases shares groups with the training set.

    Args:
        rule: What the cases of a group share, in a few words.
        group_of: Group of each identifier that has one.
        subset_of: Subset of each case.
        subset: The test set.
    """
    trained = {group_of[identifier] for identifier in group_of if subset_of[identifier] == TRAINING}
    leaking = [
        identifier for identifier, where in subset_of.items() if where == subset and group_of.get(identifier) in trained
    ]
    if not leaking:
        return []
    return [
        f"data leak: {counted(len(leaking), 'case')} of {_described(subset)} and the training set share groups "
        f"({rule}): {shortened(leaking)}"
    ]

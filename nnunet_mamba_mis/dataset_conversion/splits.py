"""Folds for cross-validation that keep together what belongs together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from nnunet_mamba_mis.dataset_conversion.groups import chain, groups_of
from nnunet_mamba_mis.nnunet.dataset import FOLDS

Split = dict[str, list[str]]


def groups_to_keep(
    identifiers: Sequence[str], group_of: Mapping[str, str], duplicates: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """Return all cases in groups that no split may divide; most have one case, if nothing is known of more.

    Args:
        identifiers: Of the training cases.
        group_of: The group of those that have one.
        duplicates: Pairs that must stay together too.
    """
    together: dict[str, list[str]] = {}
    for identifier in identifiers:
        if identifier in group_of:
            together.setdefault(group_of[identifier], []).append(identifier)
    return groups_of(identifiers, [*chain(list(together.values())), *duplicates])


def grouped_folds(identifiers: Sequence[str], groups: Sequence[list[str]]) -> list[Split]:
    """Return five folds, or as many as there are groups, that never divide a group; none if there is only one group.

    Args:
        identifiers: Of the training cases.
        groups: All of them, in groups.
    """
    if len(groups) < 2:
        return []
    # large ones first, so that small ones even the folds out; else in an order that has nothing to do with names
    groups = sorted(
        groups, key=lambda group: (-len(group), hashlib.sha256(min(group).encode("utf-8", "surrogateescape")).digest())
    )
    folds: list[list[str]] = [[] for _ in range(min(FOLDS, len(groups)))]
    for group in groups:
        min(folds, key=len).extend(group)
    return [_split(identifiers, set(fold)) for fold in folds]


def official_split(identifiers: Sequence[str], validation: set[str]) -> list[Split]:
    """Return the one fold that validates on the cases given."""
    return [_split(identifiers, validation)]


def _split(identifiers: Sequence[str], validation: set[str]) -> Split:
    return {
        "train": sorted(identifier for identifier in identifiers if identifier not in validation),
        "val": sorted(validation),
    }

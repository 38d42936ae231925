"""Cross-validation folds that never separate the cases of a group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from nnunet_mamba_mis.dataset_conversion.groups import chain, groups_of
from nnunet_mamba_mis.nnunet.dataset import FOLDS

Split = dict[str, list[str]]


def groups_to_keep(
    identifiers: Sequence[str], group_of: Mapping[str, str], duplicates: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """Return all cases in groups that no split may divide; a case without relations is a group of its own.

    Args:
        identifiers: Identifiers of the training cases.
        group_of: Group of each identifier that has one.
        duplicates: Further pairs that must stay together.
    """
    together: dict[str, list[str]] = {}
    for identifier in identifiers:
        if identifier in group_of:
            together.setdefault(group_of[identifier], []).append(identifier)
    return groups_of(identifiers, [*chain(list(together.values())), *duplicates])


def grouped_folds(identifiers: Sequence[str], groups: Sequence[list[str]]) -> list[Split]:
    """Return five folds, or one per group if there are fewer groups; none if there is only one group.

    Args:
        identifiers: Identifiers of the training cases.
        groups: The same identifiers in groups, which the folds never divide.
    """
    if len(groups) < 2:
        return []
    # large groups first, so that small ones balance the folds; groups of equal size in an order unrelated to names
    groups = sorted(
        groups, key=lambda group: (-len(group), hashlib.sha256(min(group).encode("utf-8", "surrogateescape")).digest())
    )
    folds: list[list[str]] = [[] for _ in range(min(FOLDS, len(groups)))]
    for group in groups:
        min(folds, key=len).extend(group)
    return [_split(identifiers, set(fold)) for fold in folds]


def official_split(identifiers: Sequence[str], validation: set[str]) -> list[Split]:
    """Return a single fold that validates on the given cases."""
    return [_split(identifiers, validation)]


def _split(identifiers: Sequence[str], validation: set[str]) -> Split:
    return {
        "train": sorted(identifier for identifier in identifiers if identifier not in validation),
        "val": sorted(validation),
    }

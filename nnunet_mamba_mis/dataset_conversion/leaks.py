"""Warn of images that a dataset trains on and tests on, or holds twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING
from nnunet_mamba_mis.utils.text import shortened


def shared_images(duplicates: Sequence[tuple[str, str]], subset_of: Mapping[str, str]) -> list[str]:
    """Return warnings of images that are there twice, in one set or, worse, in two."""
    pairs_of: dict[tuple[str, str], list[str]] = {}
    for one, other in duplicates:
        first, *_, second = sorted([subset_of[one], subset_of[other]], key=lambda subset: (subset != TRAINING, subset))
        pairs_of.setdefault((first, second), []).append(f"{one} = {other}")
    warnings = []
    for (first, second), pairs in sorted(pairs_of.items()):
        if first == second:
            warnings.append(
                f"{len(pairs)} pairs of images in {_called(first)} are the same or nearly: {shortened(pairs)}"
            )
        else:
            sets = f"{_called(first)} and {_called(second)}"
            warnings.append(f"{sets} share {len(pairs)} images, the same or nearly, which leaks: {shortened(pairs)}")
    return warnings


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
        f"{len(leaking)} cases of {_called(subset)} share a group with the training set ({rule}), which leaks: "
        f"{shortened(leaking)}"
    ]

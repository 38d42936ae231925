"""Find images that are there twice: the same file, or the same picture at another size, quality or colour."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_mamba_mis.dataset_conversion.cases import FINGERPRINT_SIDE, CaseFacts

# Of 256 bits. Of the 2.3 million pairs of ISIC 2017's 2150 images, six differ in at most 19 bits, and each shows one
# lesion; the next differ in 23 and show two. Kvasir-SEG's nearest differ in 47.
_NEAR = 20
_BITS = FINGERPRINT_SIDE**2
_AGREEMENT = _BITS - 2 * _NEAR  # equal bits less different ones

# rows compared at a time: 40 MB for 10 000 images
_ROWS = 1024

Pair = tuple[CaseFacts, CaseFacts]


def exact_duplicates(facts: Sequence[CaseFacts]) -> list[Pair]:
    """Return each case whose image is the same file as an earlier one's, after that one."""
    first: dict[str, CaseFacts] = {}
    return [(first[case.image_sha256], case) for case in facts if first.setdefault(case.image_sha256, case) is not case]


def duplicates(facts: Sequence[CaseFacts]) -> list[Pair]:
    """Return pairs of the same image, or nearly so: as few as join all that belong together, however many do."""
    with_fingerprint = [case for case in facts if case.fingerprint]
    near = ((with_fingerprint[i], with_fingerprint[j]) for i, j in _near_pairs(with_fingerprint))
    forest = _Forest(case.case.identifier for case in facts)
    pairs = itertools.chain(exact_duplicates(facts), near)
    return [(one, other) for one, other in pairs if forest.join(one.case.identifier, other.case.identifier)]


def near_any(fingerprints: Sequence[bytes], others: Sequence[bytes]) -> list[bool]:
    """Return of each fingerprint whether one of the others is of the same image, or nearly so; empty ones are not."""
    ones, known = _signs(fingerprints), _signs([other for other in others if other])
    found: list[bool] = []
    for start in range(0, len(ones), _ROWS):
        found.extend((ones[start : start + _ROWS] @ known.T >= _AGREEMENT).any(axis=1).tolist())
    return found


def _near_pairs(facts: Sequence[CaseFacts]) -> Iterator[tuple[int, int]]:
    signs = _signs([case.fingerprint for case in facts])
    for start in range(0, len(signs), _ROWS):
        agreement = signs[start : start + _ROWS] @ signs[start:].T
        for row, column in np.argwhere(agreement >= _AGREEMENT):
            if row < column:
                yield start + int(row), start + int(column)


def _signs(fingerprints: Sequence[bytes]) -> NDArray[np.float32]:
    """1 and -1 for the bits of each, so that a product of two is equal bits less different ones; 0 for an empty one."""
    signs = np.zeros((len(fingerprints), _BITS), np.float32)
    for row, fingerprint in zip(signs, fingerprints, strict=True):
        if fingerprint:
            row[:] = np.unpackbits(np.frombuffer(fingerprint, np.uint8)) * 2.0 - 1
    return signs


def groups_of(members: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return members in groups, so that the two of a pair share one; everything in the order of members."""
    forest = _Forest(members)
    for one, other in pairs:
        forest.join(one, other)
    groups: dict[str, list[str]] = {}
    for member in members:
        groups.setdefault(forest.root(member), []).append(member)
    return list(groups.values())


class _Forest:
    """Members that are joined step by step; each group has a root.

    Args:
        members: each a group of its own at first.
    """

    def __init__(self, members: Iterable[str]) -> None:
        self._parent = {member: member for member in members}

    def root(self, member: str) -> str:
        """Return what all members of a group have in common."""
        while self._parent[member] != member:
            self._parent[member] = member = self._parent[self._parent[member]]
        return member

    def join(self, one: str, other: str) -> bool:
        """Make two groups one, and return whether they were two."""
        first, second = self.root(one), self.root(other)
        self._parent[second] = first
        return first != second


def chain(groups: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Return pairs that join the members of each group."""
    return [(group[0], member) for group in groups for member in group[1:]]

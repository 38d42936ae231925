"""Groups of members that pairs join, and pairs that join the members of groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def groups_of(members: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return members in groups, so that the two of a pair share one; everything in the order of members."""
    forest = Forest(members)
    for one, other in pairs:
        forest.join(one, other)
    groups: dict[str, list[str]] = {}
    for member in members:
        groups.setdefault(forest.root(member), []).append(member)
    return list(groups.values())


class Forest:
    """Members that are joined step by step; each group has a root.

    Args:
        members: Each a group of its own at first.
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

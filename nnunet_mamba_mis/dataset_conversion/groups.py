"""Convert pairs of connected members to groups, and groups to pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def groups_of(members: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return members in groups such that the members of each pair share a group; the order of members is kept."""
    forest = Forest(members)
    for first, second in pairs:
        forest.join(first, second)
    groups: dict[str, list[str]] = {}
    for member in members:
        groups.setdefault(forest.root(member), []).append(member)
    return list(groups.values())


class Forest:
    """Disjoint groups of members, which can be merged; each group has a root.

    Args:
        members: Initial members, each in its own group.
    """

    def __init__(self, members: Iterable[str]) -> None:
        self._parent = {member: member for member in members}

    def root(self, member: str) -> str:
        """Return the member that represents a member's group."""
        while self._parent[member] != member:
            self._parent[member] = member = self._parent[self._parent[member]]
        return member

    def join(self, first: str, second: str) -> bool:
        """Merge the groups of two members, and return whether they were separate."""
        first_root, second_root = self.root(first), self.root(second)
        self._parent[second_root] = first_root
        return first_root != second_root


def chain(groups: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Return pairs that connect the members of each group."""
    return [(group[0], member) for group in groups for member in group[1:]]

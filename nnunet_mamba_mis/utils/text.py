"""Lists, numbers and times as people write them."""

from __future__ import annotations

from collections.abc import Sequence


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Return names in a line: the first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shortened_lines(lines: Sequence[str], most: int = 10) -> list[str]:
    """Return lines of equal indent: the first of them, and one that says how many more there are."""
    if len(lines) <= most:
        return list(lines)
    indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
    return [*lines[:most], f"{indent}and {len(lines) - most} more"]


def duration(seconds: float) -> str:
    """Return a length of time: 5 s, 3 min 07 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"

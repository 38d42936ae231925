"""Damage a JSON file: break its content, or replace or remove single values."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUES = [None, "text", "", [], [1], {}, {"a": 1}, True, 1, -1, 2.5, float("nan"), float("inf"), 1e308, 10**30]
_DEPTH = 100_000


def damage_content(path: Path) -> Iterator[str]:
    """Write each damaged state of the file and yield its name; restore the file at the end."""
    before = path.read_bytes()
    states = {
        "truncated": before[: len(before) // 2],
        "empty": b"",
        "binary": bytes(range(256)),
        "not UTF-8": before + b"\xff",
        "mark": b"\xef\xbb\xbf" + before,
        "deep": b"[" * _DEPTH + b"]" * _DEPTH,
        "deep objects": b'{"a":' * _DEPTH + b"1" + b"}" * _DEPTH,
        "duplicated": before.rstrip()[:-1] + b"," + before.lstrip()[1:],
        "other": b'"text"',
    }
    for name, content in states.items():
        path.write_bytes(content)
        yield name
    path.unlink()
    path.mkdir()
    yield "folder"
    path.rmdir()
    path.write_bytes(before)


def damage_values(path: Path, number: int, seed: int) -> Iterator[str]:
    """Replace or remove `number` random values in the file, one at a time, and restore the file at the end."""
    before = path.read_text()
    places = list(_places(json.loads(before)))
    every = [(place, value) for place in places for value in [*VALUES, "removed"]]
    for place, value in random.Random(seed).sample(every, min(number, len(every))):
        content = json.loads(before)
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        if value == "removed":
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
        path.write_text(json.dumps(content))
        yield f"{'.'.join(map(str, place))}: {value!r}"
    path.write_text(before)


def _places(content: Any) -> Iterator[tuple]:
    """Yield the path of keys to every value; for a list, only to its first value."""
    entries = list(content.items()) if isinstance(content, dict) else list(enumerate(content))[:1]
    for key, value in entries:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *rest) for rest in _places(value))

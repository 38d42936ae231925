"""The identity of a model, and its folders of results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_SEED_FOLDER = re.compile(r"seed_(\w+)")


class Model(NamedTuple):
    """The parts of the name of nnU-Net's folder of results: TRAINER__PLANS__CONFIGURATION."""

    trainer: str
    plans: str = "nnUNetPlans"
    configuration: str = "2d"

    @classmethod
    def parse(cls, folder_name: str) -> Model | None:
        """Return the model of a folder, or None for a folder with another kind of name."""
        parts = folder_name.split("__")
        return cls(*parts) if len(parts) == 3 and all(parts) else None

    def __str__(self) -> str:
        return "__".join(self)


def seed_folders(roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield each folder of results and its subfolders seed_N, with their seeds."""
    for root in roots:
        for folder in (root, *sorted(root.glob("seed_*"))):
            match = _SEED_FOLDER.fullmatch(folder.name)
            yield match[1] if match else "", folder

"""What identifies a model, and where nnU-Net's results of it lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_SEED_FOLDER = re.compile(r"seed_(\w+)")


class Model(NamedTuple):
    """What nnU-Net names a folder of results by: TRAINER__PLANS__CONFIGURATION."""

    trainer: str
    plans: str = "nnUNetPlans"
    configuration: str = "2d"

    @classmethod
    def parse(cls, folder_name: str) -> Model | None:
        """Return the model of a folder, or None if the name is no model's."""
        parts = folder_name.split("__")
        return cls(*parts) if len(parts) == 3 and all(parts) else None

    def __str__(self) -> str:
        return "__".join(self)


def seed_folders(roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield each folder of results and the folders seed_N in it, with the seed."""
    for root in roots:
        for folder in (root, *sorted(root.glob("seed_*"))):
            match = _SEED_FOLDER.fullmatch(folder.name)
            yield match[1] if match else "", folder

"""Read what nnU-Net's trainer prints about each epoch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
_PATTERNS = {
    "number": re.compile(r"\bEpoch (\d+)\b"),
    "train_loss": re.compile(rf"\btrain_loss {_NUMBER}"),
    "val_loss": re.compile(rf"\bval_loss {_NUMBER}"),
    # NumPy 2 writes np.float32(0.5)
    "pseudo_dice": re.compile(rf"\bPseudo dice \[(?:np\.float\d+\()?{_NUMBER}"),
    "seconds": re.compile(rf"\bEpoch time: {_NUMBER} s"),
}


@dataclass(frozen=True)
class Epoch:
    """What nnU-Net reports of an epoch.

    Args:
        number: of the epoch, from 0.
        train_loss: mean over the training batches.
        val_loss: mean over the validation batches.
        pseudo_dice: of the first foreground class, over the validation batches as a whole.
        seconds: how long it took.
    """

    number: int
    train_loss: float
    val_loss: float
    pseudo_dice: float
    seconds: float


class EpochReader:
    """Put an epoch together from the lines of a log."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def feed(self, line: str) -> Epoch | None:
        """Return the epoch that ends with this line, if one does."""
        for name, pattern in _PATTERNS.items():
            if match := pattern.search(line):
                self._values[name] = float(match[1])
        if len(self._values) < len(_PATTERNS):
            return None
        values, self._values = self._values, {}
        return Epoch(number=int(values.pop("number")), **values)


def read_epochs(lines: Iterable[str]) -> Iterator[Epoch]:
    """Return all epochs of a log."""
    reader = EpochReader()
    return (epoch for epoch in map(reader.feed, lines) if epoch is not None)


def read_training_logs(folder: Path) -> list[Epoch]:
    """Return the epochs of all training_log_*.txt of a fold, in order."""
    # the name has the time, but not zero-padded everywhere
    files = sorted(folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    return [epoch for file in files for epoch in read_epochs(file.read_text(errors="replace").splitlines())]

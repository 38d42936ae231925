"""Read what nnU-Net's trainer prints about each epoch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
# longer numbers are not those of an epoch
_BEGIN = re.compile(r"\bEpoch ([0-9]{1,9})\b")
_TRAIN_LOSS = re.compile(rf"\btrain_loss {_NUMBER}")
_VAL_LOSS = re.compile(rf"\bval_loss {_NUMBER}")
_PSEUDO_DICE = re.compile(r"\bPseudo dice \[(.*)\]")
_END = re.compile(rf"\bEpoch time: {_NUMBER} s")
_LONGEST_EPOCH = 1e9  # seconds
# NumPy 2 writes np.float32(0.5)
_CLASS = re.compile(rf"(?:np\.float\d+\()?{_NUMBER}\)?")


@dataclass(frozen=True)
class Epoch:
    """What nnU-Net reports of an epoch.

    Args:
        number: Number of the epoch, from 0.
        train_loss: Mean over the training batches.
        val_loss: Mean over the validation batches.
        pseudo_dices: Pseudo Dice of each foreground class over all validation batches; NaN for a class in none of them.
        seconds: Duration.
    """

    number: int
    train_loss: float
    val_loss: float
    pseudo_dices: tuple[float, ...]
    seconds: float

    @property
    def pseudo_dice(self) -> float:
        """Pseudo Dice of the first foreground class."""
        return self.pseudo_dices[0]


class EpochReader:
    """Assemble epochs from the lines of a log.

    Attributes:
        epochs_done: Number of epochs before the one in progress; falls if training resumed from an earlier epoch.
    """

    def __init__(self) -> None:
        self.epochs_done = 0
        self._losses: dict[str, float] = {}
        self._pseudo_dices: tuple[float, ...] = ()

    def feed(self, line: str) -> Epoch | None:
        """Return the epoch that ends with this line, if one does."""
        if match := _BEGIN.search(line):
            self.epochs_done = int(match[1])
            self._losses, self._pseudo_dices = {}, ()
        elif match := _TRAIN_LOSS.search(line):
            self._losses["train_loss"] = float(match[1])
        elif match := _VAL_LOSS.search(line):
            self._losses["val_loss"] = float(match[1])
        elif match := _PSEUDO_DICE.search(line):
            self._pseudo_dices = tuple(map(float, _CLASS.findall(match[1])))
        elif (match := _END.search(line)) and len(self._losses) == 2 and self._pseudo_dices:
            seconds = float(match[1])
            if not 0 <= seconds < _LONGEST_EPOCH:
                return None
            epoch = Epoch(self.epochs_done, **self._losses, pseudo_dices=self._pseudo_dices, seconds=seconds)
            self.epochs_done += 1
            return epoch
        return None

    def read(self, lines: Iterable[str]) -> Iterator[Epoch]:
        """Yield the epochs that end in these lines."""
        return (epoch for epoch in map(self.feed, lines) if epoch is not None)


def read_epochs(lines: Iterable[str]) -> Iterator[Epoch]:
    """Return all epochs of a log."""
    return EpochReader().read(lines)


def read_training_logs(folder: Path, problems: list[str] | None = None) -> list[Epoch]:
    """Return the epochs of all training logs of a fold, in order; arguments are those of `log_lines`."""
    return list(read_epochs(log_lines(folder, problems)))


def log_lines(folder: Path, problems: list[str] | None = None) -> Iterator[str]:
    """Yield the lines of all training_log_*.txt of a fold, in order.

    Args:
        folder: Folder of the fold.
        problems: List for messages about logs that cannot be read.
    """
    # sorted by modification time, as the time in the name is not always zero-padded
    for file in sorted(folder.glob("training_log_*.txt"), key=lambda file: file.lstat().st_mtime):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            if problems is not None:
                problems.append(f"{file} cannot be read: {error.strerror}")
            continue
        yield from text.splitlines()

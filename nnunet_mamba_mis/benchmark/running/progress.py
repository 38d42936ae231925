"""How far a job is, from what nnU-Net and `mamba_mis benchmark run` have written into its folder."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.benchmark.running.jobs import CHECKPOINTS, Job

_EPOCH = re.compile(r": *Epoch (\d+) *$")
_EPOCH_TIME = re.compile(r": *Epoch time: ([\d.]+) s *$")
_PSEUDO_DICE = re.compile(r": *Pseudo dice \[(.*)\] *$")
_VALUE = re.compile(r"(?:np\.float\d+\()?(nan|[\d.]+(?:e-?\d+)?)\)?")
# the first epochs of a run are slow, and a machine's pace changes
_EPOCHS_OF_PACE = 20


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        state: "done", "running", "validating", "queued", "failed", "interrupted" or "to do".
        epochs_done: number of epochs that have ended.
        epochs: of the whole training, or None before it has begun.
        dice: mean of the classes: of the validation or test set if it is done, else the last epoch's pseudo Dice; None
            before that.
        seconds_left: of training, or None if that cannot be known yet.
    """

    state: str
    epochs_done: int
    epochs: int | None
    dice: float | None
    seconds_left: float | None


@dataclass
class _Training:
    epochs_done: int = 0
    dice: float | None = None
    seconds: tuple[float, ...] = ()


def read_progress(job: Job, running: bool, queued: bool) -> Progress:
    """Return how far a job is.

    Args:
        job: whose folder to read.
        running: whether a process works on it.
        queued: whether it waits in a cluster's queue.
    """
    training = _read_training(job.folder)
    epochs = _epochs(job.folder)
    trained = (job.folder / CHECKPOINTS[0]).exists()
    if job.is_done():
        return Progress("done", training.epochs_done, epochs, _summary_dice(job.summary), 0.0)
    state = _state(job, running, queued, trained)
    left = None
    if epochs is not None and training.seconds:
        left = max(0, epochs - training.epochs_done) * statistics.median(training.seconds)
    return Progress(state, training.epochs_done, epochs, training.dice, left)


def _state(job: Job, running: bool, queued: bool, trained: bool) -> str:
    if running:
        return "validating" if trained else "running"
    if queued:
        return "queued"
    if _last_line(job.log).rpartition(" failed: ")[1]:
        return "failed"
    return "interrupted" if job.has_begun() or _last_line(job.log) else "to do"


def _last_line(log: Path) -> str:
    """The note at the end of a job's log, if there is one, or else what it ends with."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
    return ""


def _read_training(folder: Path) -> _Training:
    # the name has the time, but not zero-padded everywhere
    files = sorted(folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    training = _Training()
    for file in files:
        _follow(training, file.read_text(errors="replace").splitlines())
    return training


def _follow(training: _Training, lines: Iterable[str]) -> None:
    for line in lines:
        if match := _EPOCH.search(line):
            # a continued training begins with an earlier one
            training.epochs_done = int(match[1])
        elif match := _PSEUDO_DICE.search(line):
            values = [float(value) for value in _VALUE.findall(match[1])]
            values = [value for value in values if not math.isnan(value)]
            training.dice = statistics.fmean(values) if values else None
        elif match := _EPOCH_TIME.search(line):
            training.epochs_done += 1
            training.seconds = (*training.seconds, float(match[1]))[-_EPOCHS_OF_PACE:]


def _epochs(folder: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads((folder / "debug.json").read_text())["num_epochs"])
    return None


def _summary_dice(summary: Path) -> float | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        dice = float(json.loads(summary.read_text())["foreground_mean"]["Dice"])
        return None if math.isnan(dice) else dice
    return None

"""Read a job's progress from the files of nnU-Net and `mamba_mis benchmark run` in its folder."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.benchmark.running.jobs import Job
from nnunet_mamba_mis.nnunet.logs import Epoch, EpochReader, log_lines
from nnunet_mamba_mis.nnunet.records import read_record_if_usable
from nnunet_mamba_mis.nnunet.results import CHECKPOINTS, Summary, read_settings

# the first epochs of a run are slow, and a machine's speed varies
_EPOCHS_OF_PACE = 20


@dataclass(frozen=True)
class Progress:
    """Progress of a job.

    Args:
        state: "done", "running", "validating", "queued", "failed", "interrupted" or "to do".
        epochs_done: Number of finished epochs.
        epochs: Number of epochs of the whole training, or None before it has begun.
        dice: Mean Dice over classes: on the validation or test set if the job is done, otherwise the pseudo Dice of the
            last epoch; None before the first epoch ends.
        seconds_left: Remaining training time, or None if it is not known yet.
        problems: Descriptions of files that cannot be used.
    """

    state: str
    epochs_done: int
    epochs: int | None
    dice: float | None
    seconds_left: float | None
    problems: Sequence[str]


def read_progress(job: Job, running: bool, queued: bool) -> Progress:
    """Return a job's progress.

    Args:
        job: The job.
        running: Whether a process works on the job.
        queued: Whether the job waits in a cluster's queue.
    """
    reader, problems = EpochReader(), list[str]()
    epochs = list(reader.read(log_lines(job.folder, problems)))
    num_epochs = read_settings(job.folder, problems).num_epochs
    planned = None if num_epochs is None else int(num_epochs)
    if job.is_done():
        dice = (read_record_if_usable(job.summary, Summary, problems) or Summary()).mean_dice
        return Progress("done", reader.epochs_done, planned, dice, 0.0, problems)
    left = None
    if planned is not None and epochs:
        pace = statistics.median(epoch.seconds for epoch in epochs[-_EPOCHS_OF_PACE:])
        left = max(0, planned - reader.epochs_done) * pace
    return Progress(_state(job, running, queued), reader.epochs_done, planned, _pseudo_dice(epochs), left, problems)


def _state(job: Job, running: bool, queued: bool) -> str:
    if running:
        return "validating" if (job.folder / CHECKPOINTS[0]).exists() else "running"
    if queued:
        return "queued"
    if _last_line(job.log).rpartition(" failed: ")[1]:
        return "failed"
    return "interrupted" if job.has_begun() or _last_line(job.log) else "to do"


def _last_line(log: Path) -> str:
    """Return the last line of a job's log that is not empty; "" if there is none."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
    return ""


def _pseudo_dice(epochs: list[Epoch]) -> float | None:
    """Return the mean pseudo Dice over the classes that occur in the last epoch's validation patches."""
    values = [value for epoch in epochs[-1:] for value in epoch.pseudo_dices if not math.isnan(value)]
    return statistics.fmean(values) if values else None

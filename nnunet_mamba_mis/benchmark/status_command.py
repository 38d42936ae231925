"""Show how far the jobs of `mamba_mis benchmark run` are, while it runs or afterwards."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_mamba_mis.benchmark.jobs import Job
    from nnunet_mamba_mis.benchmark.progress import Progress

_NUMBERS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis benchmark status`."""
    parser.add_argument("-d", dest="datasets", metavar="ID", nargs="+", help="of these datasets (default: of all)")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from nnunet_mamba_mis.benchmark.processes import is_running
    from nnunet_mamba_mis.benchmark.progress import read_progress
    from nnunet_mamba_mis.benchmark.slurm import queued_jobs
    from nnunet_mamba_mis.errors import UserError

    results = _results()
    jobs = _find_jobs(results, args.datasets)
    if not jobs:
        wanted = f" for dataset {' '.join(args.datasets)}" if args.datasets else ""
        raise UserError(f"no jobs{wanted} in {results}: `mamba_mis benchmark run` makes them")
    queued = queued_jobs(jobs)
    progress = {job: read_progress(job, is_running(job.folder), job in queued) for job in jobs}
    print("\n".join(_table(progress)))
    print("Dice: mean of the classes; of the validation if done, else the last epoch's pseudo Dice. Left: of training.")


def _results() -> Path:
    import os

    from nnunet_mamba_mis.errors import UserError

    if "nnUNet_results" not in os.environ:
        raise UserError("nnUNet_results is not set: export nnUNet_results=/path (`mamba_mis doctor` says what for)")
    return Path(os.environ["nnUNet_results"]).absolute()


def _find_jobs(results: Path, datasets: list[str] | None) -> list[Job]:
    from nnunet_mamba_mis.benchmark.jobs import LOG, Job

    logs = [log for start in ("", "seed_*/") for log in results.glob(f"{start}Dataset*/*/fold_*/{LOG}")]
    jobs = [job for log in logs if (job := Job.of_folder(results, log.parent))]
    if datasets:
        jobs = [job for job in jobs if {job.dataset, str(int(job.dataset[7:10]))} & {_plain(d) for d in datasets}]
    return sorted(jobs, key=_order)


def _order(job: Job) -> tuple:
    return job.dataset, job.plans, job.configuration, job.trainer, job.fold, -1 if job.seed is None else job.seed


def _plain(dataset: str) -> str:
    return str(int(dataset)) if dataset.isdecimal() else dataset


def _table(progress: dict[Job, Progress]) -> list[str]:
    """Lines: what differs between jobs has a column, and what is too long for the terminal is cut in the middle."""
    names = {
        "dataset": [job.dataset for job in progress],
        "trainer": [job.trainer for job in progress],
        "plans": [job.plans for job in progress],
        "configuration": [job.configuration for job in progress],
        "fold": [str(job.fold) for job in progress],
        "seed": ["-" if job.seed is None else str(job.seed) for job in progress],
    }
    shared = {name: values[0] for name, values in names.items() if len(set(values)) == 1 and values[0] != "-"}
    columns = {name: values for name, values in names.items() if len(set(values)) > 1}
    columns["state"] = [each.state for each in progress.values()]
    columns["epoch"] = [f"{each.epochs_done}/{each.epochs or '?'}" for each in progress.values()]
    columns["Dice"] = ["-" if each.dice is None else f"{each.dice:.3f}" for each in progress.values()]
    columns["left"] = [_length(each.seconds_left) for each in progress.values()]
    lines = ["  ".join(f"{name} {value}" for name, value in shared.items())] if shared else []
    return [*lines, *_rows(columns), _summary(list(progress.values()))]


def _rows(columns: dict[str, list[str]]) -> list[str]:
    widths = {name: max(map(len, [name, *values])) for name, values in columns.items()}
    room = shutil.get_terminal_size((120, 24)).columns
    while sum(widths.values()) + 2 * (len(widths) - 1) > room:
        widest = max(widths, key=lambda name: widths[name])
        if widths[widest] <= _NUMBERS:
            break
        widths[widest] -= 1
    rows = zip(*([name, *values] for name, values in columns.items()), strict=True)
    return ["  ".join(f"{_cut(text, width):{width}}" for text, width in zip(row, widths.values(), strict=True)).rstrip()
            for row in rows]  # fmt: skip


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return text[: width - 1 - end] + "…" + text[len(text) - end :]


def _length(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _summary(progress: list[Progress]) -> str:
    states = [each.state for each in progress]
    return f"{len(states)} jobs: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

"""Show how far the jobs of `mamba_mis benchmark run` are, while it runs or afterwards."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_mamba_mis.benchmark.running.jobs import Job
    from nnunet_mamba_mis.benchmark.running.progress import Progress

_NUMBERS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis benchmark status`."""
    parser.add_argument("-d", dest="datasets", metavar="ID", nargs="+", help="of these datasets (default: of all)")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from nnunet_mamba_mis.benchmark.running.processes import is_running
    from nnunet_mamba_mis.benchmark.running.progress import read_progress
    from nnunet_mamba_mis.benchmark.running.slurm import queued_jobs
    from nnunet_mamba_mis.utils.errors import UserError

    results = _results()
    jobs = _find_jobs(results, args.datasets)
    if not jobs:
        wanted = f" for dataset {' '.join(args.datasets)}" if args.datasets else ""
        raise UserError(f"no jobs{wanted} in {results}: `mamba_mis benchmark run` makes them")
    queued = queued_jobs(jobs)
    progress = {job: read_progress(job, is_running(job.folder), job in queued) for job in jobs}
    print("\n".join(_table(progress)))
    print("Dice: mean of the classes; of validation or test set if done, else the last epoch's pseudo Dice.")
    print("Left: of training.")


def _results() -> Path:
    import os

    from nnunet_mamba_mis.utils.errors import UserError

    if "nnUNet_results" not in os.environ:
        raise UserError("nnUNet_results is not set: export nnUNet_results=/path (`mamba_mis doctor` says what for)")
    return Path(os.environ["nnUNet_results"]).absolute()


def _find_jobs(results: Path, datasets: list[str] | None) -> list[Job]:
    from nnunet_mamba_mis.benchmark.running.jobs import LOG, Prediction, Training

    jobs: list[Job] = []
    for start in ("", "seed_*/"):
        trainings = results.glob(f"{start}Dataset*/*/fold_*/{LOG}")
        jobs += filter(None, (Training.of_folder(results, log.parent) for log in trainings))
        tests = results.glob(f"{start}Dataset*/*/test_folds_*/*/*/{LOG}")
        jobs += filter(None, (Prediction.of_folder(results, log.parent) for log in tests))
    if datasets:
        jobs = [job for job in jobs if {job.dataset, str(int(job.dataset[7:10]))} & {_plain(d) for d in datasets}]
    return sorted(jobs, key=_order)


def _order(job: Job) -> tuple:
    names = _names(job)
    seed = -1 if job.model.seed is None else job.model.seed
    kind = (job.model.plans, job.model.configuration, bool(job.needs), job.model.trainer)
    return job.dataset, *kind, names["test set"], names["fold"], seed


def _names(job: Job) -> dict[str, str]:
    """What tells jobs apart."""
    from nnunet_mamba_mis.benchmark.running.jobs import Prediction

    model = job.model
    return {
        "dataset": model.dataset,
        "trainer": model.trainer,
        "plans": model.plans,
        "configuration": model.configuration,
        "fold": job.folds,
        "seed": "-" if model.seed is None else str(model.seed),
        "test set": str(job.test_set) if isinstance(job, Prediction) else "-",
    }


def _plain(dataset: str) -> str:
    return str(int(dataset)) if dataset.isdecimal() else dataset


def _table(progress: dict[Job, Progress]) -> list[str]:
    """Lines: what differs between jobs has a column, and what is too long for the terminal is cut in the middle."""
    of_job = [_names(job) for job in progress]
    names = {name: [of_one[name] for of_one in of_job] for name in of_job[0]}
    shared = {name: values[0] for name, values in names.items() if len(set(values)) == 1 and values[0] != "-"}
    columns = {name: values for name, values in names.items() if len(set(values)) > 1}
    columns["state"] = [each.state for each in progress.values()]
    columns["epoch"] = [
        "-" if job.needs else f"{each.epochs_done}/{each.epochs or '?'}" for job, each in progress.items()
    ]
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

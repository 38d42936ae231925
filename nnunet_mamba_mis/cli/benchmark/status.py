"""Show the progress of the jobs of `mamba_mis benchmark run`, while it runs or afterwards."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_mamba_mis.benchmark.running.jobs import Job
    from nnunet_mamba_mis.benchmark.running.progress import Progress

# no column is cut to fewer characters, which keeps short numbers intact
_NARROWEST = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis benchmark status`."""
    parser.add_argument("-d", dest="datasets", metavar="ID", nargs="+", help="show only these datasets (default: all)")


def run(args: argparse.Namespace) -> None:
    """Print the table of jobs."""
    from nnunet_mamba_mis.benchmark.running.jobs import find_jobs
    from nnunet_mamba_mis.benchmark.running.processes import is_running
    from nnunet_mamba_mis.benchmark.running.progress import read_progress
    from nnunet_mamba_mis.benchmark.running.slurm import queued_jobs
    from nnunet_mamba_mis.nnunet.paths import folder
    from nnunet_mamba_mis.utils.errors import UserError
    from nnunet_mamba_mis.utils.text import one_line

    results = folder("nnUNet_results").absolute()
    jobs = find_jobs(results, args.datasets)
    if not jobs:
        selection = f" for dataset {' '.join(args.datasets)}" if args.datasets else ""
        raise UserError(f"no jobs{selection} in {results}: start them with `mamba_mis benchmark run`")
    queued = queued_jobs(jobs)
    progress = {job: read_progress(job, is_running(job.folder), job in queued) for job in jobs}
    print("\n".join(map(one_line, table(progress))))
    for problem in dict.fromkeys(problem for row in progress.values() for problem in row.problems):
        print(f"mamba_mis: warning: {one_line(problem)}", file=sys.stderr)
    print("Dice: mean over classes, on the validation or test set if done, else the last epoch's pseudo Dice.")
    print("left: remaining training time.")


def table(progress: Mapping[Job, Progress]) -> list[str]:
    """Return lines that fit the terminal: one column per property that differs between jobs, long texts shortened."""
    from nnunet_mamba_mis.utils.text import duration

    identities = [_identity(job) for job in progress]
    names = {name: [identity[name] for identity in identities] for name in identities[0]}
    shared = {name: values[0] for name, values in names.items() if len(set(values)) == 1 and values[0] != "-"}
    columns = {name: values for name, values in names.items() if len(set(values)) > 1}
    jobs, rows = list(progress), list(progress.values())
    columns["state"] = [row.state for row in rows]
    columns["epoch"] = [
        "-" if job.needs else f"{row.epochs_done}/{row.epochs or '?'}" for job, row in zip(jobs, rows, strict=True)
    ]
    columns["Dice"] = ["-" if row.dice is None else f"{row.dice:.3f}" for row in rows]
    columns["left"] = ["-" if row.seconds_left is None else duration(row.seconds_left) for row in rows]
    lines = ["  ".join(f"{name} {value}" for name, value in shared.items())] if shared else []
    return [*lines, *_lines(columns), _summary(columns["state"])]


def _identity(job: Job) -> dict[str, str]:
    """Return the properties that identify a job: name of a column → text."""
    from nnunet_mamba_mis.benchmark.running.jobs import Prediction

    candidate = job.candidate
    return {
        "dataset": candidate.dataset,
        **candidate.model._asdict(),
        "fold": " ".join(map(str, job.folds)),
        "seed": "-" if candidate.seed is None else str(candidate.seed),
        "test set": str(job.test_set) if isinstance(job, Prediction) else "-",
    }


def _lines(columns: Mapping[str, Sequence[str]]) -> Iterable[str]:
    widths = {name: max(map(len, [name, *values])) for name, values in columns.items()}
    room = shutil.get_terminal_size((120, 24)).columns
    while sum(widths.values()) + 2 * (len(widths) - 1) > room:
        widest = max(widths, key=lambda name: widths[name])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    for row in zip(*([name, *values] for name, values in columns.items()), strict=True):
        cells = (f"{_cut(text, width):{width}}" for text, width in zip(row, widths.values(), strict=True))
        yield "  ".join(cells).rstrip()


def _cut(text: str, width: int) -> str:
    """Replace the middle of a text that is too long with an ellipsis."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return text[: width - 1 - end] + "…" + text[len(text) - end :]


def _summary(states: Sequence[str]) -> str:
    return f"{len(states)} jobs: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

"""Train and validate datasets × trainers × plans × folds × seeds with nnU-Net's own commands, and predict test sets.

Skips finished jobs, resumes interrupted ones with --c, and continues past failures: safe to rerun at any time. Runs
here (--jobs or --gpus), or submits the jobs to Slurm (--slurm). Follow it with `mamba_mis benchmark status`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnunet_mamba_mis.benchmark.running.presets import PRESETS, get_preset
from nnunet_mamba_mis.nnunet.environment import check_variables
from nnunet_mamba_mis.utils.errors import UserError

if TYPE_CHECKING:
    from nnunet_mamba_mis.benchmark.running.jobs import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis benchmark run`."""
    add = parser.add_argument
    add("-d", dest="datasets", metavar="ID", nargs="+", required=True, help="nnU-Net's ids of the datasets")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--trainers", metavar="NAME", nargs="+", help="trainers, nnU-Net's or any that it finds")
    which.add_argument("--preset", choices=PRESETS, help="the trainers and plans of a fair comparison")
    add("--epochs", metavar="N", type=int, help="length of the preset's trainers (default: 1000)")
    add("--plans", metavar="NAME", nargs="+", help="names of plans (default: nnUNetPlans, or the preset's)")
    add("-c", dest="configuration", metavar="NAME", default="2d", help="configuration of the plans (default: 2d)")
    add("--folds", metavar="N", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="folds (default: 0 1 2 3 4)")
    seeds = "repeat with these seeds, results in seed_N in nnUNet_results (default: once, as nnU-Net does, unseeded)"
    add("--seeds", metavar="N", nargs="+", type=int, help=seeds)
    add("--test-sets", action="store_true", help="then predict each dataset's test sets with the ensemble of the folds")
    add("--test-on", metavar="ID", nargs="+", default=[], help="and all labelled images of these other datasets")
    probabilities = (
        "save probabilities, for the report's calibration; validates and predicts again where they are missing"
    )
    add("--save-probabilities", action="store_true", help=probabilities)
    device = "default: cuda if there is a usable GPU or with --slurm, else cpu"
    add("-device", choices=("cpu", "cuda", "mps"), help=device)
    add("--dry-run", action="store_true", help="print the command of each job that is not done; start nothing")
    here = parser.add_argument_group("on this machine").add_mutually_exclusive_group()
    here.add_argument("--jobs", metavar="N", type=int, help="jobs at a time (default: 1)")
    gpus = "one job at a time on each of these GPUs (a number given twice: two)"
    here.add_argument("--gpus", metavar="N", nargs="+", type=int, help=gpus)
    _add_slurm(parser)


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("on a cluster").add_argument
    add("--slurm", action="store_true", help="submit the jobs to Slurm; the next options go with it")
    add("--partition", metavar="NAME", help="default: the cluster's")
    time = "of a job, [DAYS-]HOURS:MINUTES:SECONDS; one that is not done by then goes back into the queue (default: "
    add("--time", metavar="LIMIT", default="24:00:00", help=time + "24:00:00)")
    add("--memory", metavar="GB", type=float, default=32, help="of a job (default: 32)")
    add("--cpus", metavar="N", type=int, default=12, help="of a job (default: 12)")
    add("--gres", metavar="GRES", default="gpu:1", help="GPU of a job with -device cuda (default: gpu:1)")
    add("--array-limit", metavar="N", type=int, default=16, help="jobs at a time (default: 16)")
    add("--sbatch", metavar="NAME=VALUE", nargs="+", default=[], help="further options of sbatch, as account=lab")


def run(args: argparse.Namespace) -> int:
    """Check all, then run or submit; return the exit status."""
    _check(args)
    check_variables()
    from nnunet_mamba_mis.benchmark.running.devices import choose_device, make_slots
    from nnunet_mamba_mis.benchmark.running.grid import make_grid, write_missing_splits
    from nnunet_mamba_mis.benchmark.running.jobs import announce, predictions

    device = choose_device(args.device, args.gpus, args.slurm)
    slots = [{}] if args.slurm else make_slots(args.jobs, args.gpus)
    own_test_sets = args.test_sets or (args.preset is not None and PRESETS[args.preset].test_sets)
    trainings, test_sets = make_grid(
        args.datasets, *_trainers_and_plans(args), args.configuration, args.folds, args.seeds or [None],
        own_test_sets, args.test_on, args.save_probabilities,
    )  # fmt: skip
    jobs: list[Job] = [*trainings, *predictions(trainings, test_sets)]
    if args.dry_run:
        _print_commands(jobs, slots, device)
        return 0
    write_missing_splits(trainings)
    announce(jobs)
    if args.slurm:
        from nnunet_mamba_mis.benchmark.running.slurm import submit

        submit(jobs, device, _slurm_parameters(args, device))
        return 0
    from nnunet_mamba_mis.benchmark.running.local import run_jobs

    return run_jobs(jobs, slots, device)


def _check(args: argparse.Namespace) -> None:
    """Refuse what argparse cannot: numbers out of range, options that exclude each other."""
    numbers = {"--jobs": args.jobs, "--memory": args.memory, "--cpus": args.cpus, "--array-limit": args.array_limit}
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise UserError(f"{name} {number}: it must be above 0")
    if any(seed < 0 for seed in args.seeds or []):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: they must not be below 0")
    if args.slurm and (args.jobs or args.gpus):
        raise UserError("--slurm excludes --jobs and --gpus: --array-limit sets how many run at a time")
    if args.gpus and args.device not in (None, "cuda"):
        raise UserError(f"--gpus and -device {args.device} exclude each other")
    if args.epochs is not None and args.preset is None:
        raise UserError("--epochs goes with --preset: a trainer has its length in its name, as _50epochs")
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise UserError("`mamba_mis benchmark run` needs Linux or macOS") from None


def _trainers_and_plans(args: argparse.Namespace) -> tuple[Sequence[str], Sequence[str]]:
    if args.preset is None:
        return args.trainers, args.plans or ["nnUNetPlans"]
    preset = get_preset(args.preset, args.epochs)
    return preset.trainers, args.plans or [preset.plans]


def _slurm_parameters(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Return submitit's parameters."""
    from nnunet_mamba_mis.benchmark.running.slurm import SECONDS_TO_SAVE

    if wrong := [option for option in args.sbatch if "=" not in option]:
        raise UserError(f"--sbatch {' '.join(wrong)}: NAME=VALUE is needed, as account=lab")
    time = re.fullmatch(r"(?:(\d{1,5})-)?(\d{1,6}):(\d\d):(\d\d)", args.time)
    if time is None:
        raise UserError(f"--time {args.time}: [DAYS-]HOURS:MINUTES:SECONDS is needed, as 24:00:00 or 2-12:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in time.groups())
    limit = (days * 24 + hours) * 60 + minutes + (seconds > 0)
    if limit * 60 <= 2 * SECONDS_TO_SAVE:
        raise UserError(f"--time {args.time}: too short, as a job is stopped {SECONDS_TO_SAVE} s before, to save")
    return {
        "job_name": "mamba_mis",
        "partition": args.partition,
        "time": limit,
        "mem": f"{round(args.memory * 1024)}M",
        "cpus_per_task": args.cpus,
        "gres": args.gres if device == "cuda" else None,
        "array_parallelism": args.array_limit,
        "signal_delay_s": SECONDS_TO_SAVE,
        "stderr_to_stdout": True,
        # even where the cluster's default is not to; open-mode is submitit's
        "additional_parameters": {"requeue": True} | dict(option.split("=", 1) for option in args.sbatch),
    }


def _print_commands(jobs: Sequence[Job], slots: Sequence[dict[str, str]], device: str) -> None:
    from nnunet_mamba_mis.benchmark.running.jobs import job_as_typed
    from nnunet_mamba_mis.nnunet.environment import variables_for
    from nnunet_mamba_mis.utils.text import one_line

    waiting = [job for job in jobs if not job.is_done()]
    for number, job in enumerate(waiting):
        # which of the slots it will be depends on which is free first
        command = job_as_typed(job, device, {**variables_for(device, len(slots)), **slots[number % len(slots)]})
        print(one_line(command))
    print(f"# {len(jobs) - len(waiting)} of {len(jobs)} jobs are done; nothing was started")

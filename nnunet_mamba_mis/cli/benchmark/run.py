"""Train and validate datasets × trainers × plans × folds × seeds with nnU-Net's own commands, and predict test sets.

The command skips finished jobs, resumes interrupted ones with --c, and continues past failures: it is safe to rerun at
any time. It runs the jobs on this machine (--jobs or --gpus), or submits them to Slurm (--slurm). `mamba_mis benchmark
status` shows their progress.
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
    which.add_argument("--trainers", metavar="NAME", nargs="+", help="any trainers that nnU-Net finds")
    which.add_argument("--preset", choices=PRESETS, help="trainers and plans of a fair comparison")
    add("--epochs", metavar="N", type=int, help="training length of the preset's trainers (default: 1000)")
    add("--plans", metavar="NAME", nargs="+", help="names of plans (default: nnUNetPlans, or the preset's)")
    add("-c", dest="configuration", metavar="NAME", default="2d", help="configuration of the plans (default: 2d)")
    add("--folds", metavar="N", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="folds (default: 0 1 2 3 4)")
    seeds = "repeat with these seeds, with results in nnUNet_results/seed_N (default: once, unseeded, like nnU-Net)"
    add("--seeds", metavar="N", nargs="+", type=int, help=seeds)
    add("--test-sets", action="store_true", help="then predict each dataset's test sets with the ensemble of its folds")
    add("--test-on", metavar="ID", nargs="+", default=[], help="also predict all labelled images of these datasets")
    probabilities = "save probabilities for calibration in the report; repeats validation or prediction to add them"
    add("--save-probabilities", action="store_true", help=probabilities)
    device = "default: cuda if a usable GPU exists or with --slurm, else cpu"
    add("-device", choices=("cpu", "cuda", "mps"), help=device)
    add("--dry-run", action="store_true", help="print the commands of all unfinished jobs; start nothing")
    here = parser.add_argument_group("on this machine").add_mutually_exclusive_group()
    here.add_argument("--jobs", metavar="N", type=int, help="number of jobs to run at a time (default: 1)")
    gpus = "run one job at a time on each of these GPUs (two if a number is given twice)"
    here.add_argument("--gpus", metavar="N", nargs="+", type=int, help=gpus)
    _add_slurm(parser)


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("on a cluster").add_argument
    add("--slurm", action="store_true", help="submit the jobs to Slurm, with the following options")
    add("--partition", metavar="NAME", help="partition (default: the cluster's)")
    time = "time limit of a job, [DAYS-]HOURS:MINUTES:SECONDS; unfinished jobs are requeued to resume (default: "
    add("--time", metavar="LIMIT", default="24:00:00", help=time + "24:00:00)")
    add("--memory", metavar="GB", type=float, default=32, help="memory per job (default: 32)")
    add("--cpus", metavar="N", type=int, default=12, help="CPUs per job (default: 12)")
    add("--gres", metavar="GRES", default="gpu:1", help="GPU per job with -device cuda (default: gpu:1)")
    add("--array-limit", metavar="N", type=int, default=16, help="number of jobs to run at a time (default: 16)")
    add("--sbatch", metavar="NAME=VALUE", nargs="+", default=[], help="further sbatch options, such as account=lab")


def run(args: argparse.Namespace) -> int:
    """Check everything, then run or submit the jobs; return the exit status."""
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
    """Refuse arguments that argparse accepts: numbers out of range, and options that exclude each other."""
    numbers = {"--jobs": args.jobs, "--memory": args.memory, "--cpus": args.cpus, "--array-limit": args.array_limit}
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise UserError(f"{name} {number}: the value must be greater than 0")
    if any(seed < 0 for seed in args.seeds or []):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: seeds must not be negative")
    if args.slurm and (args.jobs or args.gpus):
        raise UserError("--slurm excludes --jobs and --gpus: set the number of simultaneous jobs with --array-limit")
    if args.gpus and args.device not in (None, "cuda"):
        raise UserError(f"--gpus and -device {args.device} exclude each other")
    if args.epochs is not None and args.preset is None:
        raise UserError("--epochs needs --preset: otherwise, name trainers of the wanted length, such as NAME_50epochs")
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
        raise UserError(f"--sbatch {' '.join(wrong)}: expected NAME=VALUE, such as account=lab")
    time = re.fullmatch(r"(?:(\d{1,5})-)?(\d{1,6}):(\d\d):(\d\d)", args.time)
    if time is None:
        raise UserError(f"--time {args.time}: expected [DAYS-]HOURS:MINUTES:SECONDS, such as 24:00:00 or 2-12:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in time.groups())
    limit = (days * 24 + hours) * 60 + minutes + (seconds > 0)
    if limit * 60 <= 2 * SECONDS_TO_SAVE:
        raise UserError(
            f"--time {args.time}: too short, as jobs stop to save {SECONDS_TO_SAVE} s before the limit: give more than "
            f"{2 * SECONDS_TO_SAVE} s"
        )
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
        # requeue even on a cluster that does not by default; submitit lets the requeued job append to its log
        "additional_parameters": {"requeue": True} | dict(option.split("=", 1) for option in args.sbatch),
    }


def _print_commands(jobs: Sequence[Job], slots: Sequence[dict[str, str]], device: str) -> None:
    from nnunet_mamba_mis.benchmark.running.jobs import job_as_typed
    from nnunet_mamba_mis.nnunet.environment import variables_for
    from nnunet_mamba_mis.utils.text import one_line

    waiting = [job for job in jobs if not job.is_done()]
    for number, job in enumerate(waiting):
        # an example: each job actually runs in the first slot that becomes free
        command = job_as_typed(job, device, {**variables_for(device, len(slots)), **slots[number % len(slots)]})
        print(one_line(command))
    print(f"# {len(jobs) - len(waiting)} of {len(jobs)} jobs are done; nothing was started")

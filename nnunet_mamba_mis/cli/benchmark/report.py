"""Score the validation predictions of all validated folds, compare the trainers, and write a report.

The command reads nnUNet_results (or the folders given with --results) and nnUNet_preprocessed. It writes report.html,
report.md, cases.csv, and the figures as PNG and SVG. report.html needs no other files and no internet access.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from nnunet_mamba_mis.nnunet.environment import check_variables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis benchmark report`."""
    datasets = "nnU-Net's ids of the datasets; each has its own tables"
    parser.add_argument("-d", dest="datasets", metavar="ID", nargs="+", required=True, help=datasets)
    results = "folders like nnUNet_results; a folder seed_N contains the results of seed N (default: nnUNet_results)"
    parser.add_argument("--results", metavar="FOLDER", nargs="+", type=Path, help=results)
    trainers = "trainers to compare, the baseline first (default: all with results, nnUNetTrainer first)"
    parser.add_argument("--trainers", metavar="NAME", nargs="+", help=trainers)
    output = "folder to write (default: ./benchmark_report)"
    parser.add_argument("-o", dest="output", metavar="FOLDER", type=Path, default=Path("benchmark_report"), help=output)
    tolerance = "tolerance of the normalised surface Dice, in units of the spacing: pixels for PNGs (default: 2)"
    parser.add_argument("--tolerance", metavar="DISTANCE", type=float, default=2.0, help=tolerance)
    cost = "measure parameters, FLOPs, training memory and seconds per image of every model on this device"
    parser.add_argument("--cost", dest="cost_device", choices=("cpu", "cuda"), help=cost)
    no_overlays = "leave out the pictures of cases, for example if patient images must not be shared"
    parser.add_argument("--no-overlays", action="store_true", help=no_overlays)
    processes = "number of processes for scoring (default: 1)"
    parser.add_argument("-np", dest="processes", metavar="N", type=int, default=1, help=processes)


def run(args: argparse.Namespace) -> None:
    """Read, score and compare the results, and write the report."""
    check_variables()
    # figures are only written to files; matplotlib cannot be imported if the environment names a missing backend
    os.environ["MPLBACKEND"] = "agg"
    from nnunet_mamba_mis.benchmark.cost.measurement import dataset_costs
    from nnunet_mamba_mis.benchmark.reporting.report import make_report

    measure = partial(dataset_costs, device=args.cost_device) if args.cost_device else None
    make_report(
        args.datasets, args.results, args.trainers, args.output, args.tolerance, args.processes, measure,
        overlays=not args.no_overlays,
    )  # fmt: skip

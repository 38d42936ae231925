"""Compare trainers by cross-validation, through nnU-Net's own commands."""

from __future__ import annotations

import argparse
import importlib

# subcommand → module with add_arguments(parser) and run(args); modules must be cheap to import
COMMANDS = {
    "run": ("nnunet_mamba_mis.cli.benchmark.run", "train and validate datasets × trainers × plans × folds × seeds"),
    "status": ("nnunet_mamba_mis.cli.benchmark.status", "show how far the jobs of run are"),
    "report": ("nnunet_mamba_mis.cli.benchmark.report", "score and compare what is in the results folders"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `mamba_mis benchmark`."""
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run_benchmark=module.run)


def run(args: argparse.Namespace) -> int | None:
    """Run the subcommand that was chosen."""
    return args.run_benchmark(args)

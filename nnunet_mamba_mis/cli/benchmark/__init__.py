"""Compare trainers by cross-validation, through nnU-Net's own commands."""

from __future__ import annotations

import argparse

from nnunet_mamba_mis.cli.subcommands import add_subcommands

# subcommand → module, summary
COMMANDS = {
    "run": ("nnunet_mamba_mis.cli.benchmark.run", "train and validate datasets × trainers × plans × folds × seeds"),
    "status": ("nnunet_mamba_mis.cli.benchmark.status", "show how far the jobs of run are"),
    "report": ("nnunet_mamba_mis.cli.benchmark.report", "score and compare what is in the results folders"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `mamba_mis benchmark`."""
    add_subcommands(parser, COMMANDS)

"""Subcommands as data: each is a module of its own."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping


def add_subcommands(parser: argparse.ArgumentParser, commands: Mapping[str, tuple[str, str]]) -> None:
    """Add subcommands; the one that is chosen leaves its function `run` in the parsed arguments.

    Args:
        parser: Of the command.
        commands: Name → module, and a summary. The module has `add_arguments(parser)` and `run(args)`, or subcommands
            of its own in place of `run`, and is cheap to import.
    """
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module_name, summary) in commands.items():
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        if hasattr(module, "run"):
            subparser.set_defaults(run=module.run)

"""The command `mamba_mis`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.output import dependable_output
from nnunet_mamba_mis.utils.text import for_terminal

# subcommand → module with add_arguments(parser) and run(args), or with COMMANDS; modules must be cheap to import
COMMANDS = {
    "convert": ("nnunet_mamba_mis.cli.convert", "convert a dataset to nnU-Net's raw format"),
    "convert images": ("nnunet_mamba_mis.cli.convert_images", "convert a folder of new images for prediction"),
    "demo": ("nnunet_mamba_mis.cli.demo", "run the whole workflow in minutes, on synthetic polyps or Kvasir-SEG"),
    "plan": ("nnunet_mamba_mis.cli.plan", "choose patch and batch size for a GPU's memory"),
    "benchmark": ("nnunet_mamba_mis.cli.benchmark", "compare trainers by cross-validation"),
    "doctor": ("nnunet_mamba_mis.cli.doctor", "check the installation and suggest fixes"),
    "predict": ("nnunet_mamba_mis.cli.predict", "segment images, folders and videos in one process"),
    "export": ("nnunet_mamba_mis.cli.export", "export a trained fold to .pt2 and ONNX, to run without nnU-Net"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit status: 0, 1 for a problem the user can solve, 130 for Ctrl-C.

    If the subcommand succeeds but its output cannot be written, the status is 141 for a closed pipe, as with `| head`,
    and 1 otherwise.
    """
    with dependable_output() as output:
        status = _status(argv)
        output.flush()
        if status or not output.failure:
            return status
        if isinstance(output.failure, BrokenPipeError):
            return 141
        print(f"mamba_mis: error: done, but the output is lost: {output.failure.strerror}", file=sys.stderr)
        return 1


def _status(argv: list[str] | None) -> int:
    try:
        return _run(argv)
    except SystemExit as leave:
        if isinstance(leave.code, str):
            raise
        return leave.code or 0  # from argparse, for --help and bad arguments
    except UserError as error:
        print(for_terminal(f"mamba_mis: error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mamba_mis: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="mamba_mis", description="Mamba-MIS for nnU-Net v2.")
    parser.add_argument("--version", action="version", version=__version__)
    _add_commands(parser, COMMANDS)
    words = sys.argv[1:] if argv is None else argv
    if (two := " ".join(words[:2])) in COMMANDS:
        words = [two, *words[2:]]
    args = parser.parse_args(words)
    for name, value in vars(args).items():
        setattr(args, name, _expanded(value))
    return args.run(args) or 0


def _expanded(value: object) -> object:
    """Return a path or list of paths with ~ expanded where the shell did not, as in --output=~/x."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, tuple[str, str]]) -> None:
    """Add a subcommand for each module; a package with its own COMMANDS is a group of subcommands."""
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module_name, summary) in commands.items():
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        if hasattr(module, "COMMANDS"):
            _add_commands(subparser, module.COMMANDS)
        else:
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)

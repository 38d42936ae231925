"""The command `mamba_mis`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping

from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import for_terminal

# subcommand → module with add_arguments(parser) and run(args), or with COMMANDS; modules must be cheap to import
COMMANDS = {
    "convert": ("nnunet_mamba_mis.cli.convert", "turn a public dataset into nnU-Net's raw format"),
    "convert images": ("nnunet_mamba_mis.cli.convert_images", "turn a folder of new images into one to predict"),
    "demo": ("nnunet_mamba_mis.cli.demo", "see it all work in minutes, on synthetic polyps or on Kvasir-SEG"),
    "plan": ("nnunet_mamba_mis.cli.plan", "choose patch and batch size for a GPU's memory"),
    "benchmark": ("nnunet_mamba_mis.cli.benchmark", "compare trainers by cross-validation"),
    "doctor": ("nnunet_mamba_mis.cli.doctor", "say what is installed, what works here, and what to do"),
    "export": ("nnunet_mamba_mis.cli.export", "write a trained fold as .pt2 and ONNX, to run without nnU-Net"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit status: 0, 1 for a problem the user can solve, 130 for Ctrl-C.

    141 is for output that nobody reads any more, as by `| head`.
    """
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return 141
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
    return args.run(args) or 0


def _add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, tuple[str, str]]) -> None:
    """Add a subcommand for each module; a package with COMMANDS of its own is a group of subcommands."""
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module_name, summary) in commands.items():
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        if hasattr(module, "COMMANDS"):
            _add_commands(subparser, module.COMMANDS)
        else:
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)

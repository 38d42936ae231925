"""Run the whole workflow with nnU-Net's own commands: convert images and masks, train, segment unseen images, score.

Without -i, the demo draws a small synthetic polyp dataset, takes minutes on a laptop and needs no network access. It
prints every command before running it, so that you can repeat the steps with your own data. It writes report.md,
overlays.png and training_curve.png to the output folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_mamba_mis.nnunet.environment import check_variables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis demo`."""
    source = "folder with Kvasir-SEG's images and masks, which stays unchanged (default: draw a synthetic dataset)"
    parser.add_argument("-i", dest="source", metavar="SOURCE", type=Path, help=source)
    output = "folder for all output; results of an earlier demo in it are removed (default: ./mamba_mis_demo)"
    parser.add_argument("-o", dest="folder", metavar="FOLDER", type=Path, default=Path("mamba_mis_demo"), help=output)
    parser.add_argument("-device", choices=("cpu", "cuda"), help="default: cuda if there is a usable GPU, else cpu")


def run(args: argparse.Namespace) -> None:
    """Run the demo."""
    check_variables()
    # figures are only written to files; matplotlib cannot be imported if the environment names a missing backend
    os.environ["MPLBACKEND"] = "agg"
    from nnunet_mamba_mis.demo.workflow import run_demo

    run_demo(args.folder, args.source, args.device)

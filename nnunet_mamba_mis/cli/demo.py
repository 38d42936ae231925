"""Go the whole way with nnU-Net's own commands: images and masks, training, segmentation of unseen images, scores.

Without -i it draws a small synthetic polyp set and is done in minutes on a laptop, without network access. Every
command is shown before it runs, so that you can do the same with your own data. Ends with report.md, overlays.png and
training_curve.png in the output folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_mamba_mis.nnunet.environment import check_variables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis demo`."""
    source = "folder with Kvasir-SEG's folders images and masks, never written to (default: draw a synthetic set)"
    parser.add_argument("-i", dest="source", metavar="SOURCE", type=Path, help=source)
    output = "folder for everything the demo makes; an earlier demo's is emptied (default: ./mamba_mis_demo)"
    parser.add_argument("-o", dest="folder", metavar="FOLDER", type=Path, default=Path("mamba_mis_demo"), help=output)
    parser.add_argument("-device", choices=("cpu", "cuda"), help="default: cuda if there is a usable GPU, else cpu")


def run(args: argparse.Namespace) -> None:
    """Run the demo."""
    check_variables()
    # figures are files: what the environment has may not even be there, with which matplotlib cannot be imported
    os.environ["MPLBACKEND"] = "agg"
    from nnunet_mamba_mis.demo.workflow import run_demo

    run_demo(args.folder, args.source, args.device)

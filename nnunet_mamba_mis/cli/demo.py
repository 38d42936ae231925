"""Go the whole way with nnU-Net's own commands: images and masks, training, segmentation of unseen images, scores.

Without -i it draws a small synthetic polyp set and is done in minutes on a laptop, without network access. Every
command is shown before it runs, so that you can do the same with your own data. Ends with report.md, overlays.png and
training_curve.png in the output folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

# nnU-Net makes five folds of the training images
_FEWEST_TRAINING_IMAGES = 5
_MOST_UNSEEN = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis demo`."""
    source = "folder with Kvasir-SEG's folders images and masks, never written to (default: draw a synthetic set)"
    parser.add_argument("-i", dest="source", metavar="SOURCE", type=Path, help=source)
    output = "folder for everything the demo makes; an earlier demo's is emptied (default: ./mamba_mis_demo)"
    parser.add_argument("-o", dest="folder", metavar="FOLDER", type=Path, default=Path("mamba_mis_demo"), help=output)
    parser.add_argument("-device", choices=("cpu", "cuda"), help="default: cuda if there is a usable GPU, else cpu")


def run(args: argparse.Namespace) -> None:
    """Check the arguments, then run all steps and report."""
    from nnunet_mamba_mis.demo import folder
    from nnunet_mamba_mis.demo.nnunet_steps import Workplace, count_cores
    from nnunet_mamba_mis.demo.workflow import run_demo

    # all that can be wrong comes before anything is removed
    folder.check_folder(args.folder, args.source)
    hold_out = None if args.source is None else _number_to_hold_out(args.source)
    _check_commands()
    device = _device(args.device)
    name = "SyntheticPolyps" if args.source is None else "KvasirSEG"
    place = Workplace(args.folder.absolute(), name, device, count_cores())
    folder.start_afresh(place.folder)
    source = None if args.source is None else args.source.absolute()
    run_demo(place, source, hold_out)


def _number_to_hold_out(source: Path) -> int:
    from nnunet_mamba_mis.dataset_conversion import DATASETS
    from nnunet_mamba_mis.utils.errors import UserError

    images = len(DATASETS["kvasir-seg"].find_cases([source]))
    hold_out = max(1, min(_MOST_UNSEEN, images // 10))
    if images - hold_out < _FEWEST_TRAINING_IMAGES:
        raise UserError(f"{source} has {images} images: at least {_FEWEST_TRAINING_IMAGES + 1} are needed")
    return hold_out


def _check_commands() -> None:
    from nnunet_mamba_mis.demo.steps import find_executable

    for name in ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"):
        find_executable(name)


def _device(wanted: str | None) -> str:
    import torch

    from nnunet_mamba_mis.utils.errors import UserError

    usable = torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise UserError("-device cuda: there is no usable CUDA device (`mamba_mis doctor` says why); use -device cpu")
    return wanted or ("cuda" if usable else "cpu")

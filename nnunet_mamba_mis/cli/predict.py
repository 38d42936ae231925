"""Segment images or videos with a trained 2D model of any trainer: nnUNetv2_predict's labels, in less time.

The command loads the model once and predicts images in batches. Images have the names and format of the training
images (CASE_0000 and so on). A model whose training images are PNG, BMP or TIFF files with one or three channels also
takes any JPEG, PNG, BMP, TIFF or GIF file. For each image, summary.csv lists the area and number of components of each
class and the mean confidence. The command skips broken images, lists them at the end, and then exits with status 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import counted, one_line

# copy of `sixteen_bits.DEPTHS`, whose import is slow
_DEPTHS = (8, 10, 12, 14, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis predict`."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "-d", dest="dataset", metavar="ID", help="id or name of the dataset that the model was trained on"
    )
    folder = "folder of the model: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION"
    model.add_argument("-m", dest="model", metavar="MODEL", type=Path, help=folder)
    sources = "images, videos, or folders of them"
    parser.add_argument("-i", dest="sources", metavar="SOURCE", nargs="+", type=Path, required=True, help=sources)
    parser.add_argument("-o", dest="output", metavar="FOLDER", type=Path, required=True, help="folder to write")
    folds = "folds to average, such as 0 1 2 3 4, or all for the fold of that name (default: every trained fold)"
    parser.add_argument("-f", dest="folds", metavar="FOLD", nargs="+", type=_fold, help=folds)
    trainer = "with -d: trainer of the model (default: the only one, or nnUNetTrainerMambaMIS)"
    parser.add_argument("-tr", dest="trainer", metavar="TRAINER", help=trainer)
    plans = "with -d: plans of the model (default: the only ones, or nnUNetPlans)"
    parser.add_argument("-p", dest="plans", metavar="PLANS", help=plans)
    configuration = "with -d: configuration of the model (default: the only one, or 2d)"
    parser.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help=configuration)
    device = "cpu, cuda or mps (default: cuda if available, else cpu)"
    parser.add_argument("-device", metavar="DEVICE", help=device)
    mirroring = "do not average over mirrored copies: faster, less accurate"
    parser.add_argument("--no-mirroring", action="store_true", help=mirroring)
    probabilities = "also write probabilities, as nnUNetv2_predict does"
    parser.add_argument("--save-probabilities", action="store_true", help=probabilities)
    overlays = "also write the images with outlines, into FOLDER/overlays"
    parser.add_argument("--overlays", action="store_true", help=overlays)
    parser.add_argument("--resume", action="store_true", help="skip images that an earlier run has finished")
    bits = (
        'bit depth that 16-bit pictures are scaled from, the same as in training: "bits" in conversion_report.json of '
        "the model's dataset (default: the depth that the brightest of these pictures needs)"
    )
    parser.add_argument("--bits", metavar="N", type=int, choices=_DEPTHS, help=bits)
    every = "predict every Nth frame of a video; frames between repeat the last outlines (default: 1)"
    parser.add_argument("--every", metavar="N", type=_positive, default=1, help=every)
    labels = "also write the label map of each predicted frame of a video"
    parser.add_argument("--save-labels", action="store_true", help=labels)


def _fold(text: str) -> int | str:
    return text if text == "all" else int(text)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Predict all inputs with a progress bar, and report what was skipped."""
    from tqdm import tqdm

    from nnunet_mamba_mis.nnunet.environment import check_variables
    from nnunet_mamba_mis.prediction.files import FilePrediction, Options
    from nnunet_mamba_mis.prediction.find_model import find_model, trained_folds

    check_variables()
    choice = (args.trainer, args.plans, args.configuration)
    if args.model and any(choice):
        raise UserError("-tr, -p and -c only work with -d: leave them out, as -m already names the model")
    model = args.model or find_model(args.dataset, *choice)
    options = Options(
        folds=args.folds or trained_folds(model) or [0],
        device=args.device,
        mirroring=not args.no_mirroring,
        probabilities=args.save_probabilities,
        overlays=args.overlays,
        resume=args.resume,
        bits=args.bits,
        every=args.every,
        frame_labels=args.save_labels,
    )
    prediction = FilePrediction(model, args.sources, args.output, options)
    problems = list(prediction.problems)
    start = time.monotonic()
    done = 0
    total = None if prediction.videos else prediction.images
    unit = " frames" if prediction.videos and not prediction.images else " images"
    with tqdm(total=total, unit=unit, disable=None) as bar:
        for step in prediction.run():
            bar.update()
            if step.problem:
                problems.append(step.problem)
                bar.write(one_line(f"mamba_mis: skipped: {step.problem}"), file=sys.stderr)
            else:
                done += 1
    seconds = time.monotonic() - start
    what = counted(done, unit.strip().removesuffix("s"))
    print(one_line(f"{args.output}: {what} in {seconds:.1f} s ({done / max(seconds, 1e-9):.1f} per second)"))
    if problems:
        print(f"mamba_mis: error: {counted(len(problems), 'problem')}:", file=sys.stderr)
        for problem in problems:
            print(f"  {one_line(problem)}", file=sys.stderr)
    return 1 if problems else 0

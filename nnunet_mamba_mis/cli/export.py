"""Export a trained fold to files that run without nnU-Net and without this package.

network.pt2 runs with PyTorch (torch.export.load); network.onnx with onnxruntime, OpenVINO or another ONNX runtime;
network_aoti.pt2 is compiled for this machine's type of CPU (torch._inductor.aoti_load_package). network.json describes
how to prepare images and what the logits mean. Each file is run and compared with the network before the folder
appears. predict_onnx.py in it segments an image file with only numpy, Pillow and onnxruntime.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_mamba_mis.nnunet.environment import check_variables

_FORMATS = ("pt2", "onnx", "aoti")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis export`."""
    model = "folder of a trained model: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION"
    parser.add_argument("-m", dest="model", metavar="MODEL_FOLDER", type=Path, required=True, help=model)
    parser.add_argument("-f", dest="fold", metavar="FOLD", required=True, help="0, 1, 2, 3, 4 or all")
    output = "folder to write; must be empty or not exist"
    parser.add_argument("-o", dest="output", metavar="FOLDER", type=Path, required=True, help=output)
    checkpoint = "checkpoint in the fold's folder (default: checkpoint_final.pth)"
    parser.add_argument("-chk", dest="checkpoint", metavar="NAME", default="checkpoint_final.pth", help=checkpoint)
    kinds = "files to write (default: pt2 onnx); onnx needs pip install 'nnunet-mamba-mis[export]', aoti a C++ compiler"
    parser.add_argument("--format", dest="formats", nargs="+", choices=_FORMATS, default=["pt2", "onnx"], help=kinds)
    trainer = (
        "trainer of this package that has the checkpoint's network; needed if the checkpoint does not describe its "
        "network and names a trainer of your own, whose code is not run"
    )
    parser.add_argument("--architecture-of", dest="trainer", metavar="TRAINER", help=trainer)


def run(args: argparse.Namespace) -> None:
    """Check the arguments, then load the fold, and write and compare the files."""
    from nnunet_mamba_mis.export import requirements

    check_variables()
    formats = list(dict.fromkeys(args.formats))
    requirements.check(formats, args.output)

    from nnunet_mamba_mis.export.fold import load_fold
    from nnunet_mamba_mis.export.folder import write_folder
    from nnunet_mamba_mis.utils.text import one_line

    fold = load_fold(args.model, args.fold, args.checkpoint, args.trainer)
    arguments = ", ".join(f"{name} {value}" for name, value in fold.network.arguments.items())
    print(one_line(f"Mamba-MIS {arguments} ({fold.description['network_source']})"), flush=True)
    write_folder(fold, formats, args.output)

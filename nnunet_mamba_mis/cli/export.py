"""Export a trained fold to files that run without nnU-Net and without this package.

network.pt2 runs in PyTorch (torch.export.load), network.onnx in onnxruntime, OpenVINO or another ONNX runtime.
network_aoti.pt2 is compiled for this machine's kind of CPU (torch._inductor.aoti_load_package). network.json describes
the preprocessing of images and the meaning of the logits. The command runs each file and compares it with the network
before the folder appears. predict_onnx.py segments an image file with only numpy, Pillow and onnxruntime.
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
    output = "folder to write; must not exist or must be empty"
    parser.add_argument("-o", dest="output", metavar="FOLDER", type=Path, required=True, help=output)
    checkpoint = "checkpoint in the fold's folder (default: checkpoint_final.pth)"
    parser.add_argument("-chk", dest="checkpoint", metavar="NAME", default="checkpoint_final.pth", help=checkpoint)
    kinds = (
        "formats to write (default: pt2 onnx); onnx needs pip install 'nnunet-mamba-mis[export]', aoti needs a C++ "
        "compiler"
    )
    parser.add_argument("--format", dest="formats", nargs="+", choices=_FORMATS, default=["pt2", "onnx"], help=kinds)
    trainer = (
        "trainer of this package that builds the same network; needed for a checkpoint of your own trainer that does "
        "not record its network, as export does not run the code of other trainers"
    )
    parser.add_argument("--architecture-of", dest="trainer", metavar="TRAINER", help=trainer)


def run(args: argparse.Namespace) -> None:
    """Check the requirements, load the fold, then write each format and compare it with the network."""
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

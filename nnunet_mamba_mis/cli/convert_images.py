"""Convert a folder of new images for nnUNetv2_predict: to upright RGB PNGs with 8 bits per channel.

The command reads JPEG, PNG, BMP, TIFF and GIF, including grey images, palettes and opaque alpha channels, exactly as
`mamba_mis convert` reads the images of a dataset.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from nnunet_mamba_mis.cli.left_out import print_left_out
from nnunet_mamba_mis.utils.text import counted, one_line

# the same as `sixteen_bits.DEPTHS`, which is not cheap to import
_DEPTHS = (8, 10, 12, 14, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis convert images`."""
    parser.add_argument("-i", dest="source", metavar="FOLDER", type=Path, required=True, help="folder of the images")
    output = "folder to write; must be empty or not exist"
    parser.add_argument("-o", dest="output", metavar="FOLDER", type=Path, required=True, help=output)
    bits = (
        'bit depth that 16-bit images are scaled from, which must be that of training: "bits" in '
        "conversion_report.json of the model's dataset (default: what the brightest of these images needs)"
    )
    parser.add_argument("--bits", metavar="N", type=int, choices=_DEPTHS, help=bits)
    parser.add_argument("--skip-bad", action="store_true", help="leave out files with problems; the report lists them")
    processes = "number of processes (default: one per core, at most 8)"
    parser.add_argument("-np", dest="processes", metavar="NP", type=int, help=processes)


def run(args: argparse.Namespace) -> None:
    """Convert the images, and print how they were scaled and the command to run next."""
    from nnunet_mamba_mis.dataset_conversion.new_images import convert_images

    images = convert_images(args.source, args.output, args.bits, args.skip_bad, args.processes)
    print(one_line(f"{images.folder} is complete: {counted(images.number, 'image')}"))
    print_left_out(images.left_out)
    if images.bits:
        number = counted(images.with_16_bits, "image")
        print(f"Scaled {number} with 16 bits per channel from {images.bits} bits to 8.")
        if args.bits is None:
            print(
                f"  The brightest image needs {images.bits} bits. If the model's images were scaled from another bit\n"
                '  depth ("bits" in conversion_report.json of its dataset), convert again with --bits.'
            )
    predictions = images.folder.with_name(f"{images.folder.name}_predictions")
    folders = f"-i {shlex.quote(str(images.folder))} -o {shlex.quote(str(predictions))}"
    print(
        "Next, with the model's dataset ID, fold and trainer:\n"
        f"  nnUNetv2_predict {one_line(folders)} -d ID -c 2d -f 0 -tr nnUNetTrainerMambaMIS"
    )

"""Convert a public dataset, as downloaded or unpacked, or your own images, to an nnU-Net dataset in nnUNet_raw."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from nnunet_mamba_mis.cli.left_out import print_left_out
from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.datasets.folder import with_labels, with_stems
from nnunet_mamba_mis.dataset_conversion.options import Options
from nnunet_mamba_mis.utils.text import for_terminal, one_line

_LIST_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis convert`."""
    parser.add_argument("name", metavar="NAME", choices=DATASETS, help=f"the dataset: {', '.join(DATASETS)}")
    source = "folder that contains the unpacked dataset, at any depth, or its archives (zip, tar, tar.gz)"
    parser.add_argument("-i", dest="sources", metavar="SOURCE", nargs="+", type=Path, required=True, help=source)
    parser.add_argument("-d", dest="dataset_id", metavar="ID", type=int, required=True, help="nnU-Net's id, 1 to 999")
    name = "what follows Dataset<ID>_ in the new folder's name (default: the dataset's own name)"
    parser.add_argument("--name", dest="folder_name", metavar="N", help=name)
    resize = "resize all images to N × N pixels, as papers do (default: keep sizes)"
    parser.add_argument("--resize", metavar="N", type=int, help=resize)
    parser.add_argument("--keep-aspect", action="store_true", help="with --resize: pad with black, do not stretch")
    official = "validate on the challenge's own validation set, in one fold (isic2017, isic2018)"
    parser.add_argument("--official-split", action="store_true", help=official)
    hold_out = (
        "move N training cases, spread evenly over their sorted names, to a test set (default: 0); warns if related "
        "cases end up on both sides"
    )
    parser.add_argument("--hold-out", metavar="N", type=int, default=0, help=hold_out)
    parser.add_argument("--skip-bad", action="store_true", help="leave out files with problems; the report lists them")
    parser.add_argument("--dry-run", action="store_true", help="check the whole source, then stop")
    overwrite = "replace a dataset with the same id and name once the new one is complete"
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    stems = "folder only: names of images and masks, with {} for the part they share (default: {}:{})"
    parser.add_argument("--stems", metavar="IMAGE:MASK", help=stems)
    labels = (
        "folder only: classes in the masks, such as polyp=1 instrument=2 ignore=255 (stored values; for palette "
        "images, indices) or polyp=#ff0000 (colours)"
    )
    parser.add_argument("--labels", metavar="NAME=VALUE", nargs="+", action="extend", help=labels)
    processes = "number of processes (default: one per core, at most 8)"
    parser.add_argument("-np", dest="processes", metavar="NP", type=int, help=processes)
    parser.add_argument("--list", action=_ListDatasets, nargs=0, help="list the datasets and exit")


def run(args: argparse.Namespace) -> None:
    """Convert a dataset, and print the commands to run next."""
    from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset

    dataset = DATASETS[args.name]
    if args.stems is not None:
        dataset = with_stems(dataset, args.stems)
    if args.labels is not None:
        dataset = with_labels(dataset, args.labels)
    options = Options(
        resize=args.resize,
        keep_aspect=args.keep_aspect,
        official=args.official_split,
        skip_bad=args.skip_bad,
        dry_run=args.dry_run,
        overwrite=args.overwrite,
        hold_out=args.hold_out,
    )
    conversion = convert_dataset(dataset, args.sources, args.dataset_id, args.folder_name, args.processes, options)
    for warning in conversion.warnings:
        print(for_terminal(f"mamba_mis: warning: {warning}"), file=sys.stderr)
    counts = ", ".join(f"{number} in {folder}" for folder, number in conversion.number_of_cases.items())
    state = "would contain:" if args.dry_run else "is complete:"
    print(one_line(f"{conversion.folder} {state} {counts}"))
    print_left_out(conversion.left_out)
    print(one_line(f"Splits: {conversion.splits}"))
    if not args.dry_run:
        print(
            "Next:\n"
            f"  nnUNetv2_plan_and_preprocess -d {args.dataset_id} --verify_dataset_integrity -c 2d\n"
            f"  nnUNetv2_train {args.dataset_id} 2d {conversion.first_fold} -tr nnUNetTrainerMambaMIS"
        )


class _ListDatasets(argparse.Action):
    """Print the list and exit, as --version does, so that --list works without the required arguments."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        width = min(_LIST_WIDTH, shutil.get_terminal_size((_LIST_WIDTH, 0)).columns)
        print("\n\n".join(_described(dataset, width) for dataset in DATASETS.values()))
        parser.exit()


def _described(dataset: Dataset, width: int) -> str:
    rows = [
        ("images", f"{dataset.num_images}; download {dataset.size}"),
        ("source", dataset.layout),
        ("licence", dataset.licence),
        ("from", dataset.url),
    ]
    lines = textwrap.wrap(f"{dataset.name}: {dataset.title}", width, subsequent_indent="    ")
    for title, text in rows:
        for line in text.splitlines():
            lines += textwrap.wrap(
                line,
                width,
                initial_indent=f"    {title:8} ",
                subsequent_indent=" " * 15,
                break_on_hyphens=False,
            )
            title = ""
    return "\n".join(lines)

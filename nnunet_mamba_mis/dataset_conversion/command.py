"""Turn a public dataset, as downloaded and unpacked, into a dataset of nnU-Net's in nnUNet_raw."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion import DATASETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis convert`."""
    parser.add_argument("name", metavar="NAME", choices=DATASETS, help=f"the dataset: {', '.join(DATASETS)}")
    source = "folder it was unpacked to; its folders may lie at any depth below"
    parser.add_argument("-i", dest="sources", metavar="SOURCE", nargs="+", type=Path, required=True, help=source)
    parser.add_argument("-d", dest="dataset_id", metavar="ID", type=int, required=True, help="nnU-Net's id, 1 to 999")
    name = "what follows Dataset<ID>_ in the name of its folder (default: the dataset's own name)"
    parser.add_argument("--name", dest="folder_name", metavar="N", help=name)
    processes = "number of processes (default: one for each core, at most 8)"
    parser.add_argument("-np", dest="processes", metavar="NP", type=int, help=processes)
    parser.add_argument("--list", action=_ListDatasets, nargs=0, help="list the datasets and exit")


def run(args: argparse.Namespace) -> None:
    """Convert a dataset and say what to run next."""
    from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset

    folder = convert_dataset(
        DATASETS[args.name], args.sources, args.dataset_id, name=args.folder_name, processes=args.processes
    )
    counts = [f"{len(list(images.iterdir()))} in {images.name}" for images in sorted(folder.glob("images*"))]
    print(
        f"{folder} is complete: {', '.join(counts)}\n"
        "Next:\n"
        f"  nnUNetv2_plan_and_preprocess -d {args.dataset_id} --verify_dataset_integrity -c 2d\n"
        f"  nnUNetv2_train {args.dataset_id} 2d 0 -tr nnUNetTrainerMambaMIS"
    )


class _ListDatasets(argparse.Action):
    """Print and exit as --version does, so that the required arguments stay required."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        rows = [("NAME", "WHAT IT IS", "SOURCE MUST HOLD", "IMAGES")]
        rows += [(d.name, d.title, d.layout, d.num_images) for d in DATASETS.values()]
        print(_table(rows, widths=(12, 24, 44, 14)))
        parser.exit()


def _table(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    lines = []
    for row in rows:
        cells = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = ((cell[i] if i < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, width, break_on_hyphens=False)]

#!/usr/bin/env python3
"""Prepare a small preprocessed dataset for `gpu_first_hour.sh --bring`.

prepare_gpu_data.py OUT                                              synthetic polyps, 256 × 256
prepare_gpu_data.py OUT kvasir-seg -i Kvasir-SEG --resize 256        arguments of `mamba_mis convert`, without -d
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ID = "900"
PLAN = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as r; r()"


def main() -> None:
    """Convert, plan and preprocess a dataset, and move the result into place if it is small enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="number of synthetic images (default: %(default)s)")
    size = "height and width of synthetic images, after resizing (default: %(default)s)"
    parser.add_argument("--size", type=int, default=256, help=size)
    batch = "batch size in the plans; nnU-Net plans small batches for few images (default: %(default)s)"
    parser.add_argument("--batch", type=int, default=12, help=batch)
    parser.add_argument("--megabytes", type=int, default=60, help="largest size of the data (default: %(default)s)")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to which Dataset900_… is added")
    source = "NAME and options of `mamba_mis convert` (default: synthetic polyps)"
    parser.add_argument("source", metavar="SOURCE", nargs=argparse.REMAINDER, help=source)
    args = parser.parse_args()
    if any(args.out.glob(f"Dataset{ID}_*")):
        sys.exit(f"{args.out} already has a Dataset{ID}_…: remove it, or choose another folder")
    with tempfile.TemporaryDirectory() as work:
        dataset = prepare(Path(work), args.source or synthetic(Path(work), args.images, args.size))
        set_batch_size(dataset / "nnUNetPlans.json", args.batch)
        size = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file()) / 1e6
        if size > args.megabytes:
            sys.exit(
                f"the preprocessed dataset has {size:.0f} MB, more than {args.megabytes}: "
                "use fewer images, or raise --megabytes"
            )
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.move(dataset, args.out)
    print(f"{size:.0f} MB in {args.out / dataset.name}")


def synthetic(work: Path, images: int, size: int) -> list[str]:
    """Draw polyps, and return arguments of `mamba_mis convert` for them."""
    from nnunet_mamba_mis.demo.synthetic_polyps import write_synthetic_set

    write_synthetic_set(work / "polyps", images)
    return ["kvasir-seg", "-i", str(work / "polyps"), "--name", "Synthetic", "--resize", str(size)]


def prepare(work: Path, source: list[str]) -> Path:
    """Convert, plan and preprocess a dataset, and return its folder in nnUNet_preprocessed."""
    folders = {f"nnUNet_{name}": work / name for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        folder.mkdir()
    environment = os.environ | {name: str(folder) for name, folder in folders.items()}
    convert = [sys.executable, "-m", "nnunet_mamba_mis.cli", "convert", *source, "-d", ID]
    for command in (convert, [sys.executable, "-c", PLAN, "-d", ID, "-c", "2d", "-npfp", "2", "-np", "2"]):
        done = subprocess.run(command, env=environment)
        if done.returncode:
            sys.exit(done.returncode)
    (dataset,) = folders["nnUNet_preprocessed"].glob(f"Dataset{ID}_*")
    return dataset


def set_batch_size(plans: Path, batch: int) -> None:
    """Overwrite the batch size that nnU-Net planned."""
    content = json.loads(plans.read_text())
    content["configurations"]["2d"]["batch_size"] = batch
    plans.write_text(json.dumps(content, indent=4))


if __name__ == "__main__":
    main()

"""Plan patch and batch size for Mamba-MIS, for the memory of a GPU.

Writes nnUNetMambaMISPlans.json into the dataset's folder in nnUNet_preprocessed, or plans of another name: choose them
with -p, for nnU-Net's own trainers too, as the network is in them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_mamba_mis.utils.errors import UserError

if TYPE_CHECKING:
    from nnunet_mamba_mis.planning.planner import MambaMISPlanner

# planning.planner has it too, but takes seconds to import
_DEFAULT_NAME = "nnUNetMambaMISPlans"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis plan`."""
    parser.add_argument("-d", dest="dataset", metavar="ID", required=True, help="nnU-Net's id of the dataset")
    memory = "what training may take on the GPU, in GB (default: 8, as nnU-Net's)"
    parser.add_argument("--gpu-memory", metavar="GB", type=float, default=8.0, help=memory)
    parser.add_argument("--variant", choices=("S", "B", "L"), default="B", help="of the network (default: B)")
    name = f"of the plans, which nnU-Net's -p takes (default: {_DEFAULT_NAME})"
    parser.add_argument("--plans-name", metavar="NAME", default=_DEFAULT_NAME, help=name)


def run(args: argparse.Namespace) -> None:
    """Write the plans and say what to run next."""
    if not args.gpu_memory > 0:
        raise UserError(f"--gpu-memory {args.gpu_memory:g}: it must be above 0")
    # nnU-Net makes a folder of the name, and takes it apart at double underscores
    if not re.fullmatch(r"[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*", args.plans_name):
        raise UserError(f"--plans-name {args.plans_name}: letters, digits, '.', '-', and single '_' between them")
    if args.plans_name == "nnUNetPlans":
        raise UserError("--plans-name nnUNetPlans: nnU-Net's own plans have this name")
    dataset, folder = _fingerprinted(args.dataset)
    planner = _plan(dataset, args.gpu_memory, args.variant, args.plans_name)
    _report(planner, folder, args.dataset)


def _fingerprinted(dataset: str) -> tuple[str, Path]:
    """The dataset's name, and its folder in nnUNet_preprocessed, where its fingerprint is."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    for name, path in {"nnUNet_raw": nnUNet_raw, "nnUNet_preprocessed": nnUNet_preprocessed}.items():
        if not path.is_set():
            raise UserError(f"{name} is not set: export {name}=/path (`mamba_mis doctor` says what for)")
    try:
        name = str(maybe_convert_to_dataset_name(dataset))
    except ValueError as error:
        raise UserError(f"-d {dataset}: neither an id nor a name that begins with Dataset") from error
    except RuntimeError as error:
        raise UserError(str(error)) from error
    raw, folder = Path(nnUNet_raw) / name, Path(nnUNet_preprocessed) / name
    if not (raw / "dataset.json").exists():
        raise UserError(f"{raw / 'dataset.json'} does not exist: planning reads it, and lists the images beside it")
    if not (folder / "dataset_fingerprint.json").exists():
        raise UserError(
            f"{name} has no fingerprint yet: run nnUNetv2_plan_and_preprocess -d {int(name[7:10])} -c 2d "
            "--verify_dataset_integrity first"
        )
    return name, folder


def _plan(dataset: str, gpu_memory: float, variant: str, plans_name: str) -> MambaMISPlanner:
    import contextlib
    import io

    from nnunet_mamba_mis.planning.planner import MambaMISPlanner

    # nnU-Net prints the U-Net that it begins with
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            planner = MambaMISPlanner(dataset, gpu_memory, variant, plans_name)
        except (AssertionError, IndexError) as error:  # what nnU-Net compares there has no message
            raise UserError(
                f"splits_final.json of {dataset} differs between nnUNet_raw and nnUNet_preprocessed: remove the one "
                "that is not wanted"
            ) from error
        planner.plan_experiment()
    return planner


def _report(planner: MambaMISPlanner, folder: Path, dataset: str) -> None:
    from nnunet_mamba_mis.planning.planner import CONFIGURATION, GIGABYTE

    name = planner.plans_identifier
    configuration = planner.plans["configurations"][CONFIGURATION]
    patch_size, batch_size = configuration["patch_size"], configuration["batch_size"]
    gpu, cpu = (planner.memory(patch_size, batch_size, device) / GIGABYTE for device in ("cuda", "cpu"))
    median = " × ".join(f"{side:g}" for side in configuration["median_image_size_in_voxels"])
    print(
        f"{folder / name}.json: Mamba-MIS {planner.variant}, patch {patch_size[0]} × {patch_size[1]} "
        f"(median image {median}), batch {batch_size}\n"
        f"Training takes about {gpu:.1f} GB on a GPU, {cpu:.1f} GB on a CPU"
    )
    print("Next:")
    data = folder / configuration["data_identifier"]
    if data.is_dir() and any(data.iterdir()):
        print(f"  (preprocessed data are there: {data})")
    else:
        print(f"  nnUNetv2_preprocess -d {dataset} -plans_name {name} -c {CONFIGURATION}")
    print(f"  nnUNetv2_train {dataset} {CONFIGURATION} 0 -tr nnUNetTrainerMambaMIS -p {name}")

"""Choose Mamba-MIS's patch and batch size to fit a GPU's memory.

The command writes nnUNetMambaMISPlans.json, or plans with another name, to the dataset's folder in nnUNet_preprocessed.
Select these plans with nnU-Net's -p. As they contain the network, they also work with nnU-Net's own trainers.
"""

from __future__ import annotations

import argparse

from nnunet_mamba_mis.nnunet.environment import check_variables
from nnunet_mamba_mis.nnunet.paths import SPLITS_FILE
from nnunet_mamba_mis.planning import PLANS_NAME
from nnunet_mamba_mis.utils.text import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mamba_mis plan`."""
    parser.add_argument("-d", dest="dataset", metavar="ID", required=True, help="nnU-Net's id of the dataset")
    memory = "GPU memory that training may use, in GB (default: 8, as in nnU-Net)"
    parser.add_argument("--gpu-memory", metavar="GB", type=float, default=8.0, help=memory)
    variant = "size of the network, or H: wider, with convolutions in each stage (default: B)"
    parser.add_argument("--variant", choices=("S", "B", "L", "H"), default="B", help=variant)
    stem = "first layer of the network: patches, as in the paper, or convolutions (default: patch)"
    parser.add_argument("--stem", choices=("patch", "conv"), default="patch", help=stem)
    name = f"name of the plans, for nnU-Net's -p (default: {PLANS_NAME})"
    parser.add_argument("--plans-name", metavar="NAME", default=PLANS_NAME, help=name)


def run(args: argparse.Namespace) -> None:
    """Write the plans, and print the commands to run next."""
    from nnunet_mamba_mis.planning.checks import check_options, find_fingerprinted

    check_variables()
    check_options(args.gpu_memory, args.plans_name)
    folder = find_fingerprinted(args.dataset)

    from nnunet_mamba_mis.nnunet.dataset import first_fold
    from nnunet_mamba_mis.planning.planner import CONFIGURATION, GIGABYTE, plan  # takes seconds to import

    planner = plan(folder.name, args.gpu_memory, args.variant, args.stem, args.plans_name)
    name = args.plans_name
    configuration = planner.plans["configurations"][CONFIGURATION]
    patch_size, batch_size = configuration["patch_size"], configuration["batch_size"]
    gpu, cpu = (planner.memory(patch_size, batch_size, device) / GIGABYTE for device in ("cuda", "cpu"))
    median = " × ".join(f"{side:g}" for side in configuration["median_image_size_in_voxels"])
    network = f"Mamba-MIS {args.variant}{' with a convolutional stem' if args.stem == 'conv' else ''}"
    print(
        f"{one_line(f'{folder / name}.json')}: {network}, patch {patch_size[0]} × {patch_size[1]} "
        f"(median image {median}), batch {batch_size}\n"
        f"Training needs about {gpu:.1f} GB on a GPU, {cpu:.1f} GB on a CPU"
    )
    print("Next:")
    data = folder / configuration["data_identifier"]
    if data.is_dir() and any(data.iterdir()):
        print(one_line(f"  (preprocessed data already exist: {data})"))
    else:
        print(f"  nnUNetv2_preprocess -d {args.dataset} -plans_name {name} -c {CONFIGURATION}")
    fold = first_fold(len(planner.dataset), (folder / SPLITS_FILE).exists())
    # H with a convolutional stem has a trainer of its own, which averages weights
    trainer = f"nnUNetTrainerMambaMIS{'_conv' if (args.variant, args.stem) == ('H', 'conv') else ''}"
    print(f"  nnUNetv2_train {args.dataset} {CONFIGURATION} {fold} -tr {trainer} -p {name}")

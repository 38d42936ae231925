"""The demo's steps: convert, plan and preprocess, train, predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_mamba_mis.demo.running import Step
from nnunet_mamba_mis.demo.workplace import DATASET_ID, TRAINER, Workplace
from nnunet_mamba_mis.nnunet.logs import EpochReader
from nnunet_mamba_mis.utils.text import counted, duration

# pixels along the longer side of the median image; on a CPU, the resolution of larger images is reduced to this
_CPU_LONG_SIDE = 160
# GPU memory in GB for which nnU-Net plans batches of about 3 such images
_CPU_MEMORY_TARGET = 0.2


def convert_step(place: Workplace, source: Path, hold_out: int) -> Step:
    """Return the step that converts images and masks to nnU-Net's format, holding some out as a test set."""
    command = ["mamba_mis", "convert", "kvasir-seg", "-i", str(source), "-d", str(DATASET_ID)]
    command += ["--name", place.dataset_name, "--hold-out", str(hold_out)]
    remark = f"--hold-out puts {counted(hold_out, 'image')} into imagesTs and labelsTs, which training does not use."
    return Step("1_convert", "Convert to nnU-Net's format", command, remark)


def plan_step(place: Workplace) -> Step:
    """Return the step that plans and preprocesses; the size of the converted images determines the resolution."""
    command = ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", "2d", "--verify_dataset_integrity"]
    remark = ""
    spacing = _spacing_for_cpu(place.raw / "imagesTr") if place.device == "cpu" else 1.0
    if spacing > 1:
        # natural images have the spacing (999, 1, 1): a target spacing of 4 reduces height and width to a quarter
        command += ["-overwrite_target_spacing", "999", str(spacing), str(spacing)]
        command += ["-gpu_memory_target", str(_CPU_MEMORY_TARGET)]
        remark = (
            "-overwrite_target_spacing and -gpu_memory_target are for CPUs: they reduce width and height of images to\n"
            f"1/{spacing}, and the batch size. Omit them on a GPU. Predictions have the original size of the images."
        )
    if place.has_few_cores:
        command += ["-npfp", str(place.cores), "-np", str(place.cores)]
    return Step("2_plan_and_preprocess", "Check the dataset, plan, preprocess", command, remark)


def _spacing_for_cpu(images: Path) -> float:
    long_sides = []
    for path in images.glob("*.png"):
        with Image.open(path) as image:
            long_sides.append(max(image.size))
    return max(1.0, round(float(np.median(long_sides)) / _CPU_LONG_SIDE, 2))


def train_step(place: Workplace, epochs: int) -> Step:
    """Return the step that trains fold 0, on four fifths of the training images; the rest is for validation."""
    command = ["nnUNetv2_train", str(DATASET_ID), "2d", "0", "-tr", TRAINER, "-device", place.device]
    return Step(
        "3_train",
        "Train Mamba-MIS",
        command,
        remark=f"This trains {epochs} short epochs; the real trainer, nnUNetTrainerMambaMIS, trains 1000 long ones.",
        # augment in the training process; not set for all commands, as planning fails with 0
        environment={"nnUNet_n_proc_DA": "0"} if place.has_few_cores else {},
        watch=_EpochLines(epochs).watch,
    )


def predict_step(place: Workplace) -> Step:
    """Return the step that segments the held-out images."""
    command = ["nnUNetv2_predict", "-d", str(DATASET_ID), "-i", str(place.raw / "imagesTs")]
    command += ["-o", str(place.predictions), "-c", "2d", "-f", "0", "-tr", TRAINER, "-device", place.device]
    if place.has_few_cores:
        command += ["-npp", "1", "-nps", "1"]
    return Step("4_predict", "Segment the unseen images", command)


class _EpochLines:
    """Turns nnU-Net's training output into one line per epoch."""

    def __init__(self, epochs: int):
        self.epochs = epochs
        self.reader = EpochReader()
        self.seconds: list[float] = []

    def watch(self, line: str) -> str | None:
        epoch = self.reader.feed(line)
        if epoch is None:
            return None
        self.seconds.append(epoch.seconds)
        left = self.epochs - len(self.seconds)
        # the first epoch is the slowest, especially on a GPU
        pace = self.seconds[1:] or self.seconds
        rest = f"about {duration(left * sum(pace) / len(pace))} left" if left else "now validating the fold"
        return (
            f"epoch {len(self.seconds)}/{self.epochs}  train loss {epoch.train_loss:6.3f}  "
            f"val loss {epoch.val_loss:6.3f}  pseudo Dice {epoch.pseudo_dice:.3f}  {duration(epoch.seconds)}, {rest}"
        )

"""Trainings of other lengths."""

from __future__ import annotations

import functools
import re

from nnunet_mamba_mis.trainers.base import ConfiguredTrainer
from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS

_NAME = re.compile(r"(\w+)_([1-9][0-9]*)epoch(s?)")


class nnUNetTrainerMambaMIS_demo(nnUNetTrainerMambaMIS):
    """Ten short epochs for `mamba_mis demo`: minutes on a laptop."""

    epochs = 10
    iterations_per_epoch = 50
    validation_iterations_per_epoch = 5


def split_length(name: str) -> tuple[str, int]:
    """Return the trainer and the number of epochs in a name like `…_1epoch` or `…_50epochs`; ("", 0) for others."""
    match = _NAME.fullmatch(name)
    # one spelling for each length, as nnU-Net's own trainers have it
    if match is None or (match[2] == "1") == bool(match[3]):
        return "", 0
    return match[1], int(match[2])


@functools.cache
def with_length(trainer: type[ConfiguredTrainer], epochs: int) -> type[ConfiguredTrainer]:
    """Return the trainer that differs in its number of epochs alone; always the same class.

    Args:
        trainer: One of `nnunet_mamba_mis.trainers`, where the new class is found too.
        epochs: At least 1.
    """
    name = f"{trainer.__name__}_{epochs}epoch{'s' if epochs > 1 else ''}"
    doc = f"{trainer.__name__} with epochs = {epochs}."
    # pickle and nnU-Net look it up there
    return type(name, (trainer,), {"__module__": "nnunet_mamba_mis.trainers", "__doc__": doc, "epochs": epochs})

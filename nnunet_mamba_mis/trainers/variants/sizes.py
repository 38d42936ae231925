"""The network's other sizes; B is the default."""

# ruff: noqa: RUF012 (the base class declares `architecture` a class variable)

from __future__ import annotations

from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS


class nnUNetTrainerMambaMIS_S(nnUNetTrainerMambaMIS):
    """Mamba-MIS-S."""

    architecture = {"variant": "S"}


class nnUNetTrainerMambaMIS_L(nnUNetTrainerMambaMIS):
    """Mamba-MIS-L."""

    architecture = {"variant": "L"}

"""Ablations: trainers with one change to the network each, including `_noSSM`, the control without state spaces."""

# ruff: noqa: RUF012 (the base class declares `architecture` a class variable)

from __future__ import annotations

from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS

ABLATIONS = (
    "nnUNetTrainerMambaMIS_ss2d",
    "nnUNetTrainerMambaMIS_noSG",
    "nnUNetTrainerMambaMIS_attentionOnly",
    "nnUNetTrainerMambaMIS_fusionOnly",
    "nnUNetTrainerMambaMIS_noBridge",
    "nnUNetTrainerMambaMIS_cnn",
    "nnUNetTrainerMambaMIS_vit",
    "nnUNetTrainerMambaMIS_noSSM",
    "nnUNetTrainerMambaMIS_mambaDiscretization",
)
__all__ = ["ABLATIONS", *ABLATIONS]


class nnUNetTrainerMambaMIS_ss2d(nnUNetTrainerMambaMIS):
    """Scans in four directions, summed, instead of BFSS."""

    architecture = {"scan": "ss2d"}


class nnUNetTrainerMambaMIS_noSG(nnUNetTrainerMambaMIS):
    """No spectral gates."""

    architecture = {"spectral_gate": False}


class nnUNetTrainerMambaMIS_attentionOnly(nnUNetTrainerMambaMIS):
    """Only the attention part of the bridge."""

    architecture = {"fusion_bridge": False}


class nnUNetTrainerMambaMIS_fusionOnly(nnUNetTrainerMambaMIS):
    """Only the multi-scale part of the bridge."""

    architecture = {"attention_bridge": False}


class nnUNetTrainerMambaMIS_noBridge(nnUNetTrainerMambaMIS):
    """Plain skip connections instead of the bridge."""

    architecture = {"attention_bridge": False, "fusion_bridge": False}


class nnUNetTrainerMambaMIS_cnn(nnUNetTrainerMambaMIS):
    """Convolution blocks instead of BSSS."""

    architecture = {"block": "cnn"}


class nnUNetTrainerMambaMIS_vit(nnUNetTrainerMambaMIS):
    """Attention blocks instead of BSSS."""

    architecture = {"block": "vit"}


class nnUNetTrainerMambaMIS_noSSM(nnUNetTrainerMambaMIS):
    """No state spaces: depthwise convolutions instead of scans.

    With 32 states, the default, the number of parameters is the same, and the number of operations about the same.
    """

    architecture = {"block": "nossm"}


class nnUNetTrainerMambaMIS_mambaDiscretization(nnUNetTrainerMambaMIS):
    """Discretization with Δ, as in Mamba, instead of (e^{ΔA} − 1)/A."""

    architecture = {"discretization": "mamba"}

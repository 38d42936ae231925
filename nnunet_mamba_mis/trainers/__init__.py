"""nnU-Net trainers; every name in `__all__` works as `nnUNetv2_train ... -tr NAME`."""

from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.trainers.paper import nnUNetTrainerMambaMIS_paper
from nnunet_mamba_mis.trainers.variants import CONTROLS, VARIANT_TRAINERS

globals().update(CONTROLS | VARIANT_TRAINERS)

# the paper's, then the control without state spaces and the other discretization
_ABLATED = ("ss2d", "noSG", "attentionOnly", "fusionOnly", "noBridge", "cnn", "vit", "noSSM", "mambaDiscretization")
ABLATIONS = tuple(f"nnUNetTrainerMambaMIS_{name}" for name in _ABLATED)

__all__ = ["nnUNetTrainerMambaMIS", "nnUNetTrainerMambaMIS_paper", *CONTROLS, *VARIANT_TRAINERS]

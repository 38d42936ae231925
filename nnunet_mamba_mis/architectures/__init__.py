"""The Mamba-MIS network."""

from nnunet_mamba_mis.architectures.mamba_mis import VARIANTS, MambaMIS, deep_supervision_sizes
from nnunet_mamba_mis.architectures.reference_weights import load_reference_weights

__all__ = ["VARIANTS", "MambaMIS", "deep_supervision_sizes", "load_reference_weights"]

"""The Mamba-MIS network."""

from nnunet_mamba_mis.architectures.gate_resampling import gates_to_resample, resample_spectral_gates
from nnunet_mamba_mis.architectures.mamba_mis import VARIANTS, MambaMIS, deep_supervision_sizes
from nnunet_mamba_mis.architectures.reference_weights import load_reference_weights

__all__ = [
    "VARIANTS",
    "MambaMIS",
    "deep_supervision_sizes",
    "gates_to_resample",
    "load_reference_weights",
    "resample_spectral_gates",
]

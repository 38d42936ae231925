"""Predict in one process: load a model once, and run images through it in batches.

`from nnunet_mamba_mis.prediction import Predictor`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_mamba_mis.prediction.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> object:
    """Import `Predictor` on first use, so that processes that only read images never import torch."""
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunet_mamba_mis.prediction.predictor import Predictor

    return Predictor

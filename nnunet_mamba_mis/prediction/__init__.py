"""Prediction in one process: a model is loaded once, and images go through it in batches.

`from nnunet_mamba_mis.prediction import Predictor`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_mamba_mis.prediction.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> object:
    """Import `Predictor` when it is used: processes that only read images do without torch."""
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunet_mamba_mis.prediction.predictor import Predictor

    return Predictor

"""The network with convolutions, and its control without state spaces."""

from __future__ import annotations

from typing import Any, ClassVar

from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS


class nnUNetTrainerMambaMIS_conv(nnUNetTrainerMambaMIS):
    """Convolutions replace the 4×4 patches and the last decoder stage, and begin all remaining stages.

    Muon trains the convolutions. Validation and prediction use averaged weights.
    """

    architecture: ClassVar[dict[str, Any]] = {"variant": "H", "stem": "conv"}
    muon = True
    ema_decay = 0.99


class nnUNetTrainerMambaMIS_conv_noSSM(nnUNetTrainerMambaMIS_conv):
    """The same network with depthwise convolutions instead of scans (control)."""

    architecture: ClassVar[dict[str, Any]] = nnUNetTrainerMambaMIS_conv.architecture | {"block": "nossm"}

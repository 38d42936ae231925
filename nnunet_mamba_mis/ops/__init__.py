"""Operations of the network with native code behind them: the selective scan, the S6 layer, pixelwise layers."""

from nnunet_mamba_mis.ops.pixelwise import Deferred, Plus, Times, deferred, pixelwise
from nnunet_mamba_mis.ops.s6 import s6
from nnunet_mamba_mis.ops.selective_scan.api import available_backends, selective_scan
from nnunet_mamba_mis.ops.selective_scan.reference import selective_scan_reference

__all__ = [
    "Deferred",
    "Plus",
    "Times",
    "available_backends",
    "deferred",
    "pixelwise",
    "s6",
    "selective_scan",
    "selective_scan_reference",
]

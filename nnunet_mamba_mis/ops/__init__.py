"""Operations of the network with native code behind them: the selective scan, the S6 layer, pixelwise expressions."""

from nnunet_mamba_mis.ops.pixelwise import Evaluator, Pixelwise, concat, lazy
from nnunet_mamba_mis.ops.s6 import s6
from nnunet_mamba_mis.ops.selective_scan.api import selective_scan
from nnunet_mamba_mis.ops.selective_scan.reference import selective_scan_reference
from nnunet_mamba_mis.ops.selective_scan.registry import available_backends

__all__ = [
    "Evaluator",
    "Pixelwise",
    "available_backends",
    "concat",
    "lazy",
    "s6",
    "selective_scan",
    "selective_scan_reference",
]

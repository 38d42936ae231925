"""Operations with native implementations: the selective scan, the S6 layer, expressions of layers."""

from nnunet_mamba_mis.ops.evaluator import Evaluator
from nnunet_mamba_mis.ops.expression_module import ExpressionModule
from nnunet_mamba_mis.ops.expressions import Expression, apply, concat, lazy
from nnunet_mamba_mis.ops.image_layers import Resize, attend, channel_summary, pixel_summary
from nnunet_mamba_mis.ops.s6 import s6
from nnunet_mamba_mis.ops.selective_scan.api import selective_scan
from nnunet_mamba_mis.ops.selective_scan.reference import selective_scan_reference
from nnunet_mamba_mis.ops.selective_scan.registry import available_backends

__all__ = [
    "Evaluator",
    "Expression",
    "ExpressionModule",
    "Resize",
    "apply",
    "attend",
    "available_backends",
    "channel_summary",
    "concat",
    "lazy",
    "pixel_summary",
    "s6",
    "selective_scan",
    "selective_scan_reference",
]

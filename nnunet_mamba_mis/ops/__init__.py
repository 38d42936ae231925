"""The selective scan, its reference and its backends."""

from nnunet_mamba_mis.ops.reference import selective_scan_reference
from nnunet_mamba_mis.ops.selective_scan import available_backends, selective_scan

__all__ = ["available_backends", "selective_scan", "selective_scan_reference"]

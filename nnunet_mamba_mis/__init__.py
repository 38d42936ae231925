"""Mamba-MIS segmentation network for nnU-Net v2 (importing this package alone imports neither torch nor nnU-Net)."""

__version__ = "0.1.0"

"""`mamba_mis demo`: from images to a scored segmentation in minutes, with nnU-Net's own commands."""

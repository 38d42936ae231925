"""`mamba_mis demo`: from images to a scored segmentation with nnU-Net's own commands, in minutes."""

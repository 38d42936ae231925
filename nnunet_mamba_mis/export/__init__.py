"""A trained network for use without nnU-Net and without this package: `.pt2` programs and ONNX."""

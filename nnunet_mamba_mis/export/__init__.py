"""Export trained networks as `.pt2` programs and ONNX, to run without nnU-Net and without this package."""

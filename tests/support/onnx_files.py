"""Inspect exported ONNX files, and run them in the installed runtimes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

from nnunet_mamba_mis.export.programs import INPUT

Run = Callable[[np.ndarray], np.ndarray]


def load_in_onnxruntime(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {INPUT: x})[0]


def load_in_openvino(path: Path) -> Run:
    import openvino

    # without this hint, OpenVINO uses bfloat16 on processors that support it
    model = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: model(x)[0]


RUNTIMES = {"onnxruntime": load_in_onnxruntime, "openvino": load_in_openvino}
RUNTIMES = {name: load for name, load in RUNTIMES.items() if importlib.util.find_spec(name)}


def assert_runtimes_agree(file: Path, x: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Assert that in every runtime a file returns the expected logits, for a batch and for its first image alone."""
    for load in RUNTIMES.values():
        run = load(file)
        for batch in (1, len(x)):
            actual = torch.from_numpy(run(x[:batch].numpy()).copy())
            torch.testing.assert_close(actual.to(expected), expected[:batch], rtol=0, atol=tolerance)


def operators(path: Path) -> list[str]:
    """Return the operator of each node in a file, after asserting that all are ONNX's own, without control flow."""
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}
    kinds = [node.op_type for node in graph.node]
    control = {"Scan", "Loop", "If", "DFT", "STFT", "SplitToSequence", "ConcatFromSequence", "Optional"}
    assert not [kind for kind in kinds if kind in control or "Sequence" in kind]
    assert not any(attribute.type == onnx.AttributeProto.GRAPH for node in graph.node for attribute in node.attribute)
    return kinds

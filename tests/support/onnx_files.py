"""What is in exported ONNX files, and the runtimes that compute with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import torch

from nnunet_mamba_mis.export.programs import run_onnx


def run_openvino(path: Path, x: torch.Tensor) -> torch.Tensor:
    import openvino

    # without it, processors that have bfloat16 use it
    model = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(model(x.numpy())[0].copy())


RUNTIMES = {"onnxruntime": run_onnx, "openvino": run_openvino}
RUNTIMES = {name: run for name, run in RUNTIMES.items() if importlib.util.find_spec(name)}


def assert_others_agree(file: Path, x: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    for run in RUNTIMES.values():
        torch.testing.assert_close(run(file, x).to(expected), expected, rtol=0, atol=tolerance)


def operators(path: Path) -> list[str]:
    """Names of the operators of a file's nodes, after a check that they are ONNX's own and simple."""
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}
    kinds = [node.op_type for node in graph.node]
    control = {"Scan", "Loop", "If", "DFT", "STFT", "SplitToSequence", "ConcatFromSequence", "Optional"}
    assert not [kind for kind in kinds if kind in control or "Sequence" in kind]
    assert not any(attribute.type == onnx.AttributeProto.GRAPH for node in graph.node for attribute in node.attribute)
    return kinds

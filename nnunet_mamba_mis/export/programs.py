"""Networks as programs of PyTorch's core operations, as `.pt2` and ONNX files, and how these are run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.export.decompositions import OWN_OPERATORS
from nnunet_mamba_mis.export.fourier import with_matrix_gates

INPUT, OUTPUT = "image", "logits"


def portable_program(network: MambaMIS, *, any_batch: bool = True) -> ExportedProgram:
    """The network in evaluation mode as a program that runs wherever PyTorch does, without this package.

    Args:
        network: On the CPU, without deep supervision.
        any_batch: Whether it takes batches of any size, or one image.

    Returns:
        (batch, input_channels, *patch_size) → logits (batch, num_classes, *patch_size).
    """
    with _inference():
        program = _program(network, any_batch).run_decompositions(OWN_OPERATORS)
    left = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("nnunet_mamba_mis.")}
    if left:
        raise NotImplementedError(f"operators without a decomposition (export/decompositions.py): {', '.join(left)}")
    return program


def _program(network: MambaMIS, any_batch: bool) -> ExportedProgram:
    """The network in evaluation mode, with the package's own operators."""
    # two images, as one would be taken for a constant
    x = torch.zeros(2 if any_batch else 1, network.input_channels, *network.patch_size)
    shapes = ({0: Dim("batch", min=1)},) if any_batch else None
    was_training = network.training
    try:
        return torch.export.export(network.eval(), (x,), dynamic_shapes=shapes)
    finally:
        network.train(was_training)


def write_pt2(network: MambaMIS, path: Path) -> None:
    """Write for `torch.export.load`; batches of any size."""
    with _inference():
        torch.export.save(portable_program(network), path)


def run_pt2(path: Path, x: Tensor) -> Tensor:
    """Logits of (batch, channels, *patch_size)."""
    with _inference():
        return torch.export.load(path).module()(x)


def write_aoti(network: MambaMIS, path: Path) -> None:
    """Compile for `torch._inductor.aoti_load_package`, on this machine's kind of CPU; one image at a time.

    Inductor of torch 2.15 cannot turn loops over arrays of unknown size into code.
    """
    program = portable_program(network, any_batch=False)
    with _inference():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def run_aoti(path: Path, x: Tensor) -> Tensor:
    """Logits of (batch, channels, *patch_size), image by image."""
    with _inference():
        model = torch._inductor.aoti_load_package(str(path))
        return torch.cat([model(image) for image in x.split(1)])


def write_onnx(network: MambaMIS, path: Path) -> None:
    """Write an ONNX model with input `image` and output `logits`; batches of any size."""
    from nnunet_mamba_mis.export.onnx_operators import SIMPLIFICATIONS, TRANSLATIONS

    with _inference():
        program = _program(with_matrix_gates(network), any_batch=True)
        model = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            custom_translation_table=TRANSLATIONS,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
        assert model is not None
        for simplify in SIMPLIFICATIONS:
            simplify()(model.model)
        model.save(path, external_data=False)


def run_onnx(path: Path, x: Tensor) -> Tensor:
    """Logits of (batch, channels, *patch_size), by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run([OUTPUT], {INPUT: x.numpy()})[0]
    return torch.from_numpy(logits)


class Format(NamedTuple):
    """A kind of file: how it is written and run."""

    file: str
    write: Callable[[MambaMIS, Path], None]
    run: Callable[[Path, Tensor], Tensor]


FORMATS = {
    "pt2": Format("network.pt2", write_pt2, run_pt2),
    "onnx": Format("network.onnx", write_onnx, run_onnx),
    "aoti": Format("network_aoti.pt2", write_aoti, run_aoti),
}


@contextmanager
def _inference() -> Iterator[None]:
    """No gradients, and no warnings of torch about its own internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

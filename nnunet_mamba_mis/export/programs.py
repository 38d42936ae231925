"""Turn networks into programs of PyTorch's core operations, write these as `.pt2` and ONNX files, and run the files."""

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
    """Return the network in evaluation mode as a program that runs wherever PyTorch does, without this package.

    Args:
        network: Network on the CPU, without deep supervision.
        any_batch: Whether the program takes batches of any size instead of single images.

    Returns:
        A program that maps (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

    Raises:
        NotImplementedError: An operator of this package has no decomposition.
    """
    with _inference():
        program = _program(network, any_batch).run_decompositions(OWN_OPERATORS)
    left = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("nnunet_mamba_mis.")}
    if left:
        raise NotImplementedError(
            f"no decomposition for {', '.join(left)}: add it to OWN_OPERATORS in export/decompositions.py"
        )
    return program


def _program(network: MambaMIS, any_batch: bool) -> ExportedProgram:
    """Export the network in evaluation mode, with the package's own operators."""
    # two images, as torch would treat a batch size of one as constant
    x = torch.zeros(2 if any_batch else 1, network.input_channels, *network.patch_size)
    shapes = ({0: Dim("batch", min=1)},) if any_batch else None
    was_training = network.training
    try:
        return torch.export.export(network.eval(), (x,), dynamic_shapes=shapes)
    finally:
        network.train(was_training)


def write_pt2(network: MambaMIS, path: Path) -> None:
    """Write a `.pt2` file for `torch.export.load` that takes batches of any size."""
    with _inference():
        torch.export.save(portable_program(network), path)


def run_pt2(path: Path, x: Tensor) -> Tensor:
    """Return logits for x (batch, channels, *patch_size), computed by a `.pt2` file."""
    with _inference():
        return torch.export.load(path).module()(x)


def write_aoti(network: MambaMIS, path: Path) -> None:
    """Write a file for `torch._inductor.aoti_load_package`, compiled for this machine's kind of CPU and single images.

    Batches have a fixed size, as Inductor in torch 2.15 cannot generate code for loops over arrays of unknown size.
    """
    program = portable_program(network, any_batch=False)
    with _inference():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def run_aoti(path: Path, x: Tensor) -> Tensor:
    """Return logits for x (batch, channels, *patch_size), computed image by image by a compiled file."""
    with _inference():
        model = torch._inductor.aoti_load_package(str(path))
        return torch.cat([model(image) for image in x.split(1)])


def write_onnx(network: MambaMIS, path: Path) -> None:
    """Write an ONNX model with input `image` and output `logits` that takes batches of any size."""
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
    """Return logits for x (batch, channels, *patch_size), computed by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run([OUTPUT], {INPUT: x.numpy()})[0]
    return torch.from_numpy(logits)


class Format(NamedTuple):
    """A file format, with its file name and the functions that write and run it."""

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
    """Disable gradients, and torch's warnings about its own internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

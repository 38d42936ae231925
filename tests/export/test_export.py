"""Exported programs run without this package, and match the network in torch, AOTInductor, onnxruntime and OpenVINO."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor import config as inductor

from nnunet_mamba_mis.architectures import VARIANTS, MambaMIS
from nnunet_mamba_mis.architectures.amffb import AMFFB
from nnunet_mamba_mis.architectures.basic_blocks import BSSS, CNNBlock, NoSSMBlock, ViTBlock
from nnunet_mamba_mis.architectures.mamba_mis import Variant
from nnunet_mamba_mis.architectures.scan_blocks import S6
from nnunet_mamba_mis.architectures.spectral_gate import SpectralGate
from nnunet_mamba_mis.export import programs
from nnunet_mamba_mis.export.decompositions import decompose_chunked_scan, decompose_s6
from nnunet_mamba_mis.export.fourier import MatrixSpectralGate
from nnunet_mamba_mis.export.scan import scan_steps
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops import selective_scan
from nnunet_mamba_mis.ops.native_pixelwise import native_pixelwise, pixelwise_in_torch
from nnunet_mamba_mis.ops.selective_scan import registry
from nnunet_mamba_mis.ops.selective_scan.chunked import chunked_scan
from support.onnx_files import assert_runtimes_agree, operators
from support.paths import PROGRAMS

needs_native = pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def unoptimized_inductor():
    """Compile Inductor's C++ without optimization and vectors, which take most of the compile time."""
    with inductor.patch({"aot_inductor.debug_compile": True, "cpp.simdlen": 1}):
        yield


def s6_arguments(shape=(2, 3, 6, 8), states=5, dtype=torch.float32):
    channels = shape[1]
    A = -torch.rand(channels, states, dtype=dtype) * 8
    weight = torch.randn(channels + 2 * states, channels, dtype=dtype)
    return (
        torch.randn(shape, dtype=dtype),
        weight,
        A,
        torch.randn(channels, dtype=dtype),
        torch.randn(channels).to(dtype),
    )


def expected_s6(u, weight, A, D, delta_bias, discretization):
    delta, B, C = F.linear(u.movedim(1, -1), weight).movedim(-1, 1).split([A.shape[0], A.shape[1], A.shape[1]], dim=1)
    arguments = (u, delta, A, B, C, D, None, delta_bias, True, True)
    return selective_scan(*arguments, discretization=discretization, backend="reference")


@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
@pytest.mark.parametrize("size", [(6, 8), (1, 1), (1, 2), (3, 3), (1, 37), (5, 30)], ids=str)
def test_decomposed_s6_matches_the_reference(size, discretization):
    arguments = s6_arguments((2, 3, *size))
    y, last_state, _ = decompose_s6(*arguments, discretization == "zoh", False)
    expected, expected_state = expected_s6(*arguments, discretization)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last_state, expected_state, rtol=1e-4, atol=1e-4)


def test_decomposed_s6_follows_strides():
    u, *others = s6_arguments((2, 3, 8, 6))
    by_columns = decompose_s6(u.mT, *others, True, False)[0]
    torch.testing.assert_close(by_columns, decompose_s6(u.mT.contiguous(), *others, True, False)[0])


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4], ids=str)
def test_decomposed_s6_is_accurate_at_extreme_decays(scale):
    u, weight, A, D, delta_bias = s6_arguments(dtype=torch.float64)
    arguments = (u, weight, A * scale, D, delta_bias)
    y = decompose_s6(*(t.float() for t in arguments), True, False)[0]
    torch.testing.assert_close(y.double(), expected_s6(*arguments, "zoh")[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exact", [True, False])
def test_decomposed_chunked_scan_matches_the_operator(exact):
    u, delta = torch.randn(2, 3, 35), torch.rand(2, 3, 35)
    A, B, C = -torch.rand(3, 4), torch.randn(2, 1, 4, 35), torch.randn(2, 1, 4, 35)
    expected = chunked_scan(u, delta, A, B, C, exact)
    for ours, theirs in zip(decompose_chunked_scan(u, delta, A, B, C, exact)[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_native
def test_decomposed_pixelwise_layers_match_the_operator():
    """The layers are those of a block: norm, linear and SiLU on concatenated inputs, times a gate, plus a residual."""
    x, y, gate = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 2), torch.randn(2, 4, 5, 6)
    parameters = [torch.randn(5), torch.randn(5), torch.randn(6, 5), torch.randn(6)]
    kinds = [0, 0, 1, 2, 3, 4, 0, 5, 0, 6]  # load, load, concat, norm, linear, silu, load, times, load, plus
    eps = [1e-5 if kind == 2 else 0.0 for kind in kinds]
    arguments = ([x, y, gate, gate], parameters, kinds, eps)
    torch.testing.assert_close(pixelwise_in_torch(*arguments), native_pixelwise(*arguments))


@pytest.mark.parametrize("size", [(8, 8), (6, 7), (5, 4), (1, 1), (1, 2), (96, 40)], ids=str)
def test_matrix_spectral_gate_matches_the_gate(size):
    gate = SpectralGate(size, 3)
    # unlike a real image's spectrum, these have imaginary parts at frequency 0 and the Nyquist frequency
    nn.init.normal_(gate.weight)
    nn.init.normal_(gate.bias)
    x = torch.randn(2, *size, 3)
    torch.testing.assert_close(MatrixSpectralGate(gate)(x), gate(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "steps"), [(65536, 256), (4096, 64), (16, 16), (17, 1), (1, 1), (320, 16)])
def test_scan_steps_are_about_the_root_of_the_length(length, steps):
    assert scan_steps(length) == steps


class Part(nn.Module):
    """A part of the network that maps images to images, as exported programs do."""

    def __init__(self, block: nn.Module, channels: int, size: tuple[int, int] = (4, 6)) -> None:
        super().__init__()
        self.block, self.input_channels, self.patch_size = block, channels, size

    def forward(self, x):
        return self.block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Bridge(nn.Module):
    """The bridge between features at two scales."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.bridge, self.input_channels, self.patch_size = AMFFB([4, 8], 4, **kwargs), 4, (4, 8)

    def forward(self, x):
        fine = x.permute(0, 2, 3, 1)
        coarse = torch.cat([fine, fine], -1)[:, ::2, ::2]
        fine, coarse = self.bridge([fine, coarse])
        return torch.cat([fine.flatten(1), coarse.flatten(1)], 1)


def tiny_network(patch_size: tuple[int, int], size: Variant = Variant((1,) * 4, (1,) * 5), **kwargs) -> MambaMIS:  # noqa: B008
    """Return a whole network, by default with one block per stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "S", size)
        return MambaMIS(4, 2, patch_size, variant="S", **kwargs)


PARTS = {
    "BSSS": lambda: Part(BSSS(6, (4, 6), 4), 6),
    "mamba": lambda: Part(BSSS(6, (4, 6), 4, discretization="mamba"), 6),
    "ss2d": lambda: Part(BSSS(6, (4, 6), 4, scan="ss2d"), 6),
    "no spectral gate": lambda: Part(BSSS(6, (4, 6), 4, spectral_gate=False), 6),
    "patch not a multiple of 32": lambda: tiny_network(
        (20, 37), block="cnn", attention_bridge=False, fusion_bridge=False
    ),
    # a larger patch: instance norm of two pixels would amplify rounding
    "convolutions": lambda: tiny_network(
        (70, 100),
        Variant((0,) * 4, (0,) * 5, convolutions=True),
        stem="conv",
        attention_bridge=False,
        fusion_bridge=False,
    ),
    "nossm": lambda: Part(NoSSMBlock(6, (4, 6), 4), 6),
    "cnn": lambda: Part(CNNBlock(6, (4, 6)), 6),
    "vit": lambda: Part(ViTBlock(8, (4, 6)), 8),
    "bridge": lambda: Bridge(),
    "bridge, attention": lambda: Bridge(fusion=False),
    "bridge, fusion": lambda: Bridge(attention=False),
}


class Scan(nn.Module):
    """An S6 layer that maps images to images, as exported programs do."""

    def __init__(self, channels: int, size: tuple[int, int], discretization: str, states: int = 5) -> None:
        super().__init__()
        self.scan, self.input_channels, self.patch_size = S6(channels, states, discretization), channels, size
        for parameter in self.scan.parameters():
            nn.init.normal_(parameter)

    def forward(self, x):
        return self.scan(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def assert_onnx_scan_is_accurate(part: Scan, tmp_path: Path) -> None:
    programs.write_onnx(part, tmp_path / "scan.onnx")
    operators(tmp_path / "scan.onnx")
    x = torch.randn(3, part.input_channels, *part.patch_size)
    expected = part.double()(x.double())
    assert_runtimes_agree(tmp_path / "scan.onnx", x, expected, 2e-5 * expected.abs().max().item())


@pytest.mark.feature("Export", "a scan in ONNX without loops and sequences, of any length and any Δ")
@pytest.mark.parametrize(
    ("size", "discretization"),
    [
        ((6, 8), "zoh"),
        # the size determines the chunks, the discretization the computation in each step
        ((6, 8), "mamba"),
        *(
            pytest.param(size, "zoh", marks=pytest.mark.slow)
            for size in [(1, 1), (1, 2), (1, 37), (17, 17), (5, 30), (64, 80)]
        ),
    ],
    ids=str,
)
def test_onnx_scan_matches_the_layer(size, discretization, tmp_path):
    torch.manual_seed(0)
    assert_onnx_scan_is_accurate(Scan(3, size, discretization), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("delta", "log_A"), [(-20, -100), (-20, 10), (-9, 0), (0, -14), (40, 10)], ids=str)
def test_onnx_scan_is_accurate_at_extreme_decays(delta, log_A, tmp_path):
    torch.manual_seed(0)
    part = Scan(2, (8, 32), "zoh")
    nn.init.constant_(part.scan.A_log, log_A)
    nn.init.constant_(part.scan.delta.bias, delta)
    assert_onnx_scan_is_accurate(part, tmp_path)


@pytest.mark.slow
def test_export_works_without_native_code(monkeypatch, tmp_path):
    part = PARTS["BSSS"]().eval()
    x = torch.randn(2, 6, 4, 6)
    expected = part(x)
    monkeypatch.setattr(registry, "fastest_backend", lambda *_: registry.BACKENDS["torch"])
    monkeypatch.setattr(native, "available", bool)
    programs.write_onnx(part, tmp_path / "part.onnx")
    operators(tmp_path / "part.onnx")
    torch.testing.assert_close(programs.run_onnx(tmp_path / "part.onnx", x), expected, rtol=0, atol=1e-4)


@pytest.mark.feature("Export", "a patch that is not a multiple of 32")
@pytest.mark.feature("Export", "every variant's blocks and bridge in onnxruntime and OpenVINO")
@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_every_part_runs_in_other_runtimes(name, tmp_path):
    torch.manual_seed(0)
    part = PARTS[name]().eval()
    programs.write_onnx(part, tmp_path / "part.onnx")
    operators(tmp_path / "part.onnx")
    x = torch.randn(3, part.input_channels, *part.patch_size)
    # OpenVINO's instance norm is off by 2e-4, onnxruntime's by 5e-5
    assert_runtimes_agree(tmp_path / "part.onnx", x, part(x), 5e-4 if name == "convolutions" else 1e-4)


def difference_without_the_package(file: Path, kind: str, net: nn.Module, images: torch.Tensor) -> float:
    """Return the largest difference from `net`'s logits, measured in a process that cannot import the package."""
    torch.save((images, net(images)), file.with_suffix(".images"))
    command = [sys.executable, PROGRAMS / "run_without_the_package.py", file, file.with_suffix(".images"), kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.splitlines()[-1])


@pytest.mark.feature("Export", "`.pt2`, exported and compiled, without this package")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt2", "aoti"])
def test_exported_program_runs_without_the_package(kind, tmp_path, unoptimized_inductor):
    # few scan steps, as Inductor compiles each of them
    part = Part(BSSS(6, (2, 3), 4), 6, (2, 3)).eval()
    programs.FORMATS[kind].write(part, tmp_path / "part.pt2")
    images = torch.randn(1 if kind == "aoti" else 3, 6, 2, 3)
    assert difference_without_the_package(tmp_path / "part.pt2", kind, part, images) <= 1e-5


@pytest.mark.feature("Export", "`MambaMIS` as a plain module: `torch.export`, AOTInductor")
@pytest.mark.slow
def test_torch_exports_and_compiles_the_plain_module(tmp_path, unoptimized_inductor):
    """The program keeps the package's operators, and so their speed, and takes batches of any size."""
    # one block and no bridge, as Inductor takes seconds for each
    size = Variant((1, 0, 0, 0), (0, 0, 0, 0, 0), convolutions=True)
    net = tiny_network((32, 32), size, stem="conv", attention_bridge=False, fusion_bridge=False).eval()
    x = torch.randn(3, 4, 32, 32)
    program = torch.export.export(net, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=1e-4)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), net(x), rtol=0, atol=1e-4)


def test_portable_program_has_no_operator_of_this_package():
    part = PARTS["BSSS"]()
    program = programs.portable_program(part)
    assert {str(node.target).partition(".")[0] for node in program.graph.nodes if node.op == "call_function"} <= {
        "aten", "scan", "<built-in function getitem>", "sym_size", "_operator"
    }  # fmt: skip
    assert part.training, "export changed the module's mode"

"""Triton's kernels against the sequential reference: compiled where there is a GPU, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from test_selective_scan import assert_same, make_arguments, values_and_gradients
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_mamba_mis.ops import selective_scan, selective_scan_reference
from nnunet_mamba_mis.ops.selective_scan import operator
from nnunet_mamba_mis.ops.selective_scan import self_test as try_out
from nnunet_mamba_mis.ops.selective_scan import triton as triton_backend
from nnunet_mamba_mis.ops.selective_scan.api import (
    BACKENDS,
    _find_available,
    available_backends,
    fastest_backend,
)
from nnunet_mamba_mis.ops.selective_scan.chunked import selective_scan_torch

pytest.importorskip("triton")
COMPILED = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = "cuda" if COMPILED else "cpu"
TOLERANCE = 1e-4  # relative to the largest value of a tensor
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not COMPILED, reason="needs a CUDA device, and TRITON_INTERPRET not to be 1"),
]


@pytest.fixture(autouse=True, scope="module")
def _interpreter():
    """Kernels are read once in a process, for a GPU or for the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        if not COMPILED:
            patch.setenv("TRITON_INTERPRET", "1")
        forget_kernels()
        yield
    forget_kernels()


def forget_kernels():
    sys.modules.pop("nnunet_mamba_mis.ops.selective_scan.triton_kernels", None)
    for cached in (triton_backend._kernels, triton_backend.why_unavailable, _find_available):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_device(arguments, dtype=torch.float32):
    return {k: v if v is None else v.to(DEVICE, dtype) for k, v in arguments.items()}


def check(arguments, tolerance=TOLERANCE, **options):
    """The kernels, of these arguments in float32, against the reference in float64."""
    exact = {k: v if v is None else v.double().cpu() for k, v in arguments.items()}
    expected = values_and_gradients(selective_scan_reference, exact, **options)
    leaves = on_device(arguments)
    actual = values_and_gradients(selective_scan, leaves, backend="triton", **options)
    assert_same({k: v.cpu() for k, v in actual.items()}, expected, tolerance)
    return actual


# length 1, one position more than a block and than a chunk, one program with dead lanes, several tiles of channels
SHAPES = {
    "one position": (2, 3, 1, 2, None),
    "a block and one": (1, 2, 9, 3, None),
    "chunks, groups, dead lanes": (2, 6, 37, 5, 2),
    "more states than registers": (1, 1, 18, 35, None),
    "tiles of channels": (1, 33, 5, 1, 1),
}


@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernels_agree_with_reference(shape, discretization):
    check(make_arguments(*shape), delta_softplus=True, discretization=discretization)


def test_optional_arguments_can_be_left_out():
    arguments = make_arguments(1, 2, 20, 3) | {"D": None, "z": None, "delta_bias": None}
    arguments["delta"] = arguments["delta"].abs()
    check(arguments, discretization="zoh")


@pytest.mark.parametrize("order", ["channels first", "channels last", "columns"])
def test_kernels_take_any_strides(order):
    """Two axes of positions; as transposed views of images, rows do not follow on each other."""
    height, width = 3, 7
    flat = make_arguments(2, 4, height * width, 3, 2)
    planar = {k: v.unflatten(-1, (height, width)) if v.dim() > 2 else v for k, v in flat.items()}
    if order == "channels last":
        planar = {k: v.movedim(1, -1).contiguous().movedim(-1, 1) if v.dim() > 2 else v for k, v in planar.items()}
    if order == "columns":
        planar = {k: v.mT.contiguous().mT if v.dim() > 2 else v for k, v in planar.items()}
    options = {"delta_softplus": True, "discretization": "zoh"}
    expected = values_and_gradients(selective_scan_reference, flat, **options)
    actual = values_and_gradients(selective_scan, on_device(planar), backend="triton", **options)
    flattened = {k: v.flatten(-2) if v.shape[-2:] == (height, width) else v for k, v in actual.items()}
    assert_same({k: v.cpu() for k, v in flattened.items()}, expected, TOLERANCE)


def test_zero_order_hold_does_not_cancel():
    arguments = make_arguments(1, 2, 20, 2)
    arguments |= {"A": -0.01 * torch.rand(2, 2).double(), "delta": 0.01 * torch.rand(1, 2, 20).double()}
    check(arguments, 5e-6, discretization="zoh")


def test_state_matrix_of_zero_is_the_limit():
    arguments = make_arguments(1, 2, 9, 2) | {"A": torch.zeros(2, 2).double()}
    check(arguments, delta_softplus=True, discretization="zoh")


def test_small_and_large_steps_are_right():
    """Softplus of −12 keeps its digits, and that of 50 is 50."""
    arguments = make_arguments(1, 2, 12, 2) | {"delta_bias": None}
    arguments["delta"] = torch.linspace(-12, 50, 24).double().view(1, 2, 12)
    actual = check(arguments, delta_softplus=True, discretization="zoh")
    assert all(value.isfinite().all() for value in actual.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_scanned_in_float32(dtype):
    arguments = make_arguments(1, 3, 40, 4, dtype=dtype)
    exact = {k: v.double() for k, v in arguments.items()}
    options = {"delta_softplus": True, "discretization": "zoh"}
    expected = values_and_gradients(selective_scan_reference, exact, **options)
    actual = values_and_gradients(selective_scan, on_device(arguments, dtype), backend="triton", **options)
    assert actual["y"].dtype == dtype and actual["last_state"].dtype == torch.float32
    assert all(actual[f"grad {name}"].dtype == dtype for name in arguments)
    assert_same({"last_state": actual["last_state"].cpu()}, {"last_state": expected["last_state"]}, TOLERANCE)
    assert_same({k: v.cpu() for k, v in actual.items()}, expected, 2e-2)


def test_two_runs_give_the_same_bits():
    arguments = on_device(make_arguments(2, 6, 37, 3, 2))
    first, second = (
        values_and_gradients(selective_scan, arguments, backend="triton", delta_softplus=True) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("channels", "programs"), [(20, 2), (70, 4)], ids=["two of three tiles", "four of nine"])
def test_parts_of_a_group_are_added_up(channels, programs, monkeypatch):
    """With many channels and few positions, several programs share the sums over channels, and each has one."""
    monkeypatch.setattr(triton_backend, "_programs", lambda device: programs)
    monkeypatch.setattr(triton_backend, "BLOCK", 2)
    check(make_arguments(1, channels, 3, 1), delta_softplus=True, discretization="zoh")


@pytest.mark.parametrize("tiles", range(1, 20))
@pytest.mark.parametrize("programs", [1, 3, 5, 7, 1000])
def test_every_part_of_a_group_has_a_tile(tiles, programs, monkeypatch):
    monkeypatch.setattr(triton_backend, "_programs", lambda device: programs)
    arguments = make_arguments(1, 8 * tiles, 3, 1)
    planar = {k: v.unsqueeze(-2) if v.dim() > 2 else v for k, v in arguments.items()}
    parts = triton_backend._Problem(planar, 1, True, True).parts()
    tiles_of_part = -(-tiles // parts)
    assert (parts - 1) * tiles_of_part < tiles <= parts * tiles_of_part


@pytest.mark.parametrize("name", ["u", "B", "C"])
def test_offsets_beyond_32_bits_are_right(name):
    """Channels or states that lie 2³⁰ elements apart, so that the last is beyond 2³¹."""
    apart = 2**30
    arguments = make_arguments(1, 4, 3, 4, dtype=torch.float16)
    strided = on_device(arguments, torch.float16)
    # only what is touched of the memory is ever there
    torch.use_deterministic_algorithms(False)
    storage = torch.empty(3 * apart + 8, dtype=torch.float16, device=DEVICE)
    strided[name] = storage.as_strided((1, 4, 3), (apart, apart, 1)).copy_(arguments[name])
    options = {"delta_softplus": True}
    expected = selective_scan_reference(**{k: v.double() for k, v in arguments.items()}, **options)
    with torch.no_grad():
        y = selective_scan(**strided, **options, backend="triton")
    torch.testing.assert_close(y.double().cpu(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
def test_negative_steps_are_right_beside_states_that_are_not_there(discretization):
    """e^{ΔA} is near 1 for the three states, whatever stands in the fourth of a tile."""
    arguments = make_arguments(1, 2, 10, 3) | {"delta_bias": None}
    arguments |= {"delta": torch.full((1, 2, 10), -100.0).double(), "A": torch.full((2, 3), -1e-4).double()}
    check(arguments, discretization=discretization)


def test_a_step_that_is_not_a_number_shows():
    arguments = on_device(make_arguments(1, 2, 10, 3))
    arguments["delta"][0, 1, 4] = float("nan")
    y = selective_scan(**arguments, delta_softplus=True, backend="triton")
    assert y[0, 1, 4:].isnan().all() and y[0, 0].isfinite().all()


def test_operator_passes_opcheck():
    arguments = on_device(make_arguments(1, 2, 9, 2, 1))
    tensors = [arguments[k].requires_grad_() for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    tensors = [t.unsqueeze(-2) if t.dim() > 2 else t for t in tensors]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(operator.scan, (*tensors, True, True, True, "triton"), test_utils=tests)


def test_compiles_without_graph_breaks():
    arguments = {k: v.requires_grad_() for k, v in on_device(make_arguments(1, 2, 9, 2)).items()}

    def scan(**tensors):
        return selective_scan(**tensors, backend="triton", discretization="zoh", delta_softplus=True)

    expected = scan(**arguments, return_last_state=True)
    actual = torch.compile(scan, backend="aot_eager", fullgraph=True)(**arguments, return_last_state=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected, strict=True))


def test_float64_is_refused():
    arguments = {k: v.to(DEVICE) for k, v in make_arguments(1, 2, 5, 3).items()}
    with pytest.raises(RuntimeError, match="no float64"):
        selective_scan(**arguments, backend="triton")


def test_a_gpu_is_tried_out_before_it_is_trusted(monkeypatch):
    """Kernels that compute something else are found out, and those that fail give their reason."""
    try_scan, device = try_out.why_wrong.__wrapped__, torch.device(DEVICE)
    assert try_scan(device) is None
    right, right_backward = triton_backend.forward, triton_backend.backward
    monkeypatch.setattr(triton_backend, "forward", lambda *args: tuple(t * 1.01 for t in right(*args)))
    assert "y of a small scan is off by" in try_scan(device)
    monkeypatch.setattr(triton_backend, "forward", right)

    def backward(*args):
        grads = right_backward(*args)
        grads[2] *= 1.01
        return grads

    monkeypatch.setattr(triton_backend, "backward", backward)
    assert "the gradient of A of a small scan is off by" in try_scan(device)

    def fail(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(triton_backend, "forward", fail)
    assert "RuntimeError: no kernel image" in try_scan(device)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, FakeTensorMode, lambda: torch.device("meta")])
def test_a_gpu_is_tried_out_whatever_is_going_on(mode, monkeypatch):
    # the reference path stands in for kernels, which take long to be interpreted
    monkeypatch.setattr(try_out, "run_operator", lambda engine, *args, **kwargs: planar_torch_scan(**kwargs))
    with mode():
        assert try_out.why_wrong.__wrapped__(torch.device(DEVICE)) is None


def planar_torch_scan(**arguments):
    flat = {k: v.flatten(2) if isinstance(v, torch.Tensor) and v.dim() > 2 else v for k, v in arguments.items()}
    return selective_scan_torch(**flat).view(arguments["u"].shape)


@pytest.mark.skipif(COMPILED, reason="kernels are compiled here")
def test_what_is_interpreted_comes_last():
    assert available_backends()[-1] == "triton"
    assert fastest_backend(torch.empty(0), "zoh") != "triton"


@pytest.mark.parametrize("capability", [80, 90, 100], ids=["A100", "H100", "B200"])
def test_kernels_compile_for_gpus_that_are_not_here(capability):
    """Every kernel, for both orders of scan and both forms, to machine code that has its states in registers."""
    pytest.importorskip("triton.backends.nvidia")
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(capability)]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in compiled} == {"walk", "carry", "gradients"}
    # a lane has 128 bytes of states, and as many of each of several things that belong to them
    assert max(int(used) for _, used in compiled) <= 160, f"bytes of a thread's stack: {compiled}"


COMPILE = """
import re, subprocess, sys, tempfile
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from nnunet_mamba_mis.ops.selective_scan import triton as triton_backend

class Driver:  # that of a GPU which is not here
    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

tools = Path(triton.__file__).parent / "backends/nvidia/bin"
run = JITFunction.run
def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tools / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(self.__name__, re.search(r"STACK:(\\d+)", usage)[1])
    return kernel

JITFunction.run = compile_only
driver.set_active(Driver())
for dtype, exact, columns in ((torch.float16, True, False), (torch.float32, False, True)):
    u = torch.empty(2, 64, 64, 8, dtype=dtype).permute(0, 3, 1, 2)
    B, C = torch.empty(2, 64, 64, 64, dtype=dtype).permute(0, 3, 1, 2).unsqueeze(1).chunk(2, dim=2)
    if columns:
        u, B, C = u.mT, B.mT, C.mT
    inputs = {"u": u, "delta": u, "A": torch.empty(8, 32), "B": B, "C": C, "D": torch.empty(8)}
    inputs |= {"z": None if exact else u, "delta_bias": torch.empty(8)}
    y, last_state, starts = triton_backend.forward(inputs, 1, True, exact, True)
    triton_backend.backward(inputs, 1, starts, y, last_state, True, exact)
"""


@pytest.mark.parametrize("name", [pytest.param("triton", marks=needs_gpu)])
def test_fastest_on_a_gpu(name):
    assert available_backends()[0] == name
    assert fastest_backend(torch.empty(0, device="cuda"), "zoh") == name


@pytest.mark.parametrize("device", [pytest.param(1, marks=needs_gpu)])
def test_runs_on_a_second_gpu(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    arguments = {k: v.float().to(f"cuda:{device}") for k, v in make_arguments(1, 2, 40, 3).items()}
    y = selective_scan(**arguments, delta_softplus=True, backend="triton")
    expected = selective_scan_reference(**arguments, delta_softplus=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [pytest.param(300, marks=needs_gpu)])
def test_runs_in_a_cuda_graph(length):
    arguments = {k: v.float().cuda() for k, v in make_arguments(1, 2, length, 3).items()}
    expected = selective_scan(**arguments, delta_softplus=True, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = selective_scan(**arguments, delta_softplus=True, backend="triton")
    graph.replay()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("length", [pytest.param(65536, marks=needs_gpu)])
def test_long_sequences_agree_with_pytorch(length):
    arguments = {k: v.float().cuda() for k, v in make_arguments(2, 8, length, 32).items()}
    options = {"delta_softplus": True, "discretization": "zoh"}
    expected = values_and_gradients(selective_scan, arguments, backend="torch", **options)
    actual = values_and_gradients(selective_scan, arguments, backend="triton", **options)
    assert_same(actual, expected, 1e-3)


def test_every_backend_names_its_device():
    assert {name: backend.device() for name, backend in BACKENDS.items()} == {
        "triton": DEVICE,
        "mamba_ssm": "cuda",
        "cpp": "cpu",
        "torch": None,
        "reference": None,
    }

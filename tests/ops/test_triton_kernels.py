"""The Triton kernels match the sequential reference: compiled on a GPU, or in Triton's interpreter without one."""

from __future__ import annotations

import importlib
import os
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_mamba_mis.ops import available_backends, selective_scan, selective_scan_reference
from nnunet_mamba_mis.ops.selective_scan import operator, self_test
from nnunet_mamba_mis.ops.selective_scan import triton as triton_backend
from nnunet_mamba_mis.ops.selective_scan.chunked import TorchBackend
from nnunet_mamba_mis.ops.selective_scan.registry import BACKENDS, _find_available, fastest_backend
from support.scans import (
    TOLERANCE,
    assert_same,
    assert_same_bits,
    check_scan,
    double,
    make_arguments,
    planar,
    run_program,
    values_and_gradients,
    with_memory_order,
)

pytest.importorskip("triton")
COMPILED = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = "cuda" if COMPILED else "cpu"
BLOCK_ON_GPUS = triton_backend.BLOCK
# positions between two kept states; fewer are faster in the interpreter
BLOCK = BLOCK_ON_GPUS if COMPILED else 2


def needs_gpu(test):
    skip = pytest.mark.skipif(not COMPILED, reason="needs a CUDA device, and TRITON_INTERPRET other than 1")
    return pytest.mark.gpu(skip(test))


@pytest.fixture(autouse=True, scope="module")
def _interpreter():
    """Reload the kernels, which a process otherwise loads only once, either for a GPU or for the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        if not COMPILED:
            patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(triton_backend, "BLOCK", BLOCK)
        forget_kernels()
        yield
    forget_kernels()


def forget_kernels():
    sys.modules.pop("nnunet_mamba_mis.ops.selective_scan.triton_kernels", None)
    for cached in (triton_backend._kernels, _find_available):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_device(arguments, dtype=torch.float32):
    return {k: v if v is None else v.to(DEVICE, dtype) for k, v in arguments.items()}


def check(arguments, given=None, tolerance=TOLERANCE[torch.float32], **options):
    """Compare the kernels with the reference in float64. By default, the kernels get the arguments in float32."""
    return check_scan("triton", arguments, on_device(arguments) if given is None else given, tolerance, **options)


# (batch, channels, length, states, groups)
SHAPES = {
    "one position": (2, 3, 1, 2, None),
    "a block and one": (2, 2, BLOCK + 1, 3, None),
    "chunks, groups, dead lanes": (1, 6, 4 * BLOCK + 5, 5, 2),
    "more states than registers": (1, 1, 2 * BLOCK + 1, 35, None),
    "tiles of channels": (1, 33, 5, 1, 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_agree_with_reference(shape):
    check(make_arguments(*SHAPES[shape]), delta_softplus=True, discretization="zoh")


@pytest.mark.parametrize("shape", ["a block and one", "chunks, groups, dead lanes"])
def test_kernels_agree_with_reference_in_the_mamba_discretization(shape):
    """The discretization changes two terms of each step, independently of the shape, so two shapes suffice."""
    check(make_arguments(*SHAPES[shape]), delta_softplus=True, discretization="mamba")


def test_transforms_and_higher_derivatives_match_the_reference():
    arguments = on_device(make_arguments(1, 2, 9, 3))
    u = arguments.pop("u")

    def derivatives(backend):
        def run(u):
            return selective_scan(u, **arguments, delta_softplus=True, discretization="zoh", backend=backend)

        leaf = u.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(run(leaf).square().sum(), leaf, create_graph=True)
        second = torch.autograd.grad(gradient.sum(), leaf)[0]
        return {"jvp": torch.func.jvp(run, (u,), (u.cos(),))[1], "first": gradient.detach(), "second": second}

    assert_same(derivatives("triton"), derivatives("reference"), 1e-4)


def test_optional_arguments_can_be_omitted():
    arguments = make_arguments(1, 2, 20, 3) | {"D": None, "z": None, "delta_bias": None}
    arguments["delta"] = arguments["delta"].abs()
    check(arguments, discretization="zoh")


@pytest.mark.parametrize("order", ["channels first", "channels last", "columns"])
def test_kernels_accept_any_strides(order):
    """Positions have two axes; in transposed views of images, rows are not contiguous."""
    height, width = 3, 7
    flat = make_arguments(1, 4, height * width, 3, 2)
    image = planar(flat, height, width)
    if order == "channels last":
        image = with_memory_order(lambda t: t.transpose(1, -1), image)
    if order == "columns":
        image = with_memory_order(lambda t: t.mT, image)
    check(flat, on_device(image), delta_softplus=True, discretization="zoh")


def test_zero_order_hold_does_not_cancel():
    arguments = make_arguments(1, 2, 20, 2)
    arguments |= {"A": -0.01 * torch.rand(2, 2).double(), "delta": 0.01 * torch.rand(1, 2, 20).double()}
    check(arguments, tolerance=5e-6, discretization="zoh")


def test_zero_state_matrix_gives_the_limit():
    arguments = make_arguments(1, 2, 9, 2) | {"A": torch.zeros(2, 2).double()}
    check(arguments, delta_softplus=True, discretization="zoh")


def test_small_and_large_steps_are_correct():
    """Softplus of −12 keeps its digits, and softplus of 50 is 50."""
    arguments = make_arguments(1, 2, 12, 2) | {"delta_bias": None}
    arguments["delta"] = torch.linspace(-12, 50, 24).double().view(1, 2, 12)
    actual = check(arguments, delta_softplus=True, discretization="zoh")
    assert all(value.isfinite().all() for value in actual.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_scanned_in_float32(dtype):
    arguments = make_arguments(1, 3, 40, 4, dtype=dtype)
    options = {"delta_softplus": True, "discretization": "zoh"}
    _, expected = selective_scan_reference(**double(arguments), return_last_state=True, **options)
    actual = check(arguments, on_device(arguments, dtype), 2e-2, **options)
    assert actual["y"].dtype == dtype and actual["last_state"].dtype == torch.float32
    assert all(actual[f"grad {name}"].dtype == dtype for name in arguments)
    torch.testing.assert_close(actual["last_state"].cpu().double(), expected, rtol=1e-4, atol=1e-4)


def test_two_runs_are_bit_identical():
    arguments = on_device(make_arguments(1, 2, 17, 2, 2))
    first, second = (
        values_and_gradients(selective_scan, arguments, backend="triton", delta_softplus=True) for _ in range(2)
    )
    assert_same_bits([first, second])


@pytest.mark.parametrize(("channels", "programs"), [(20, 2), (70, 4)], ids=["two of three tiles", "four of nine"])
def test_parts_of_a_group_are_added_up(channels, programs, monkeypatch):
    """With many channels and few positions, several programs sum over channels, each over its own part."""
    monkeypatch.setattr(triton_backend, "_programs", lambda device: programs)
    monkeypatch.setattr(triton_backend, "BLOCK", 2)
    check(make_arguments(1, channels, 3, 1), delta_softplus=True, discretization="zoh")


@pytest.mark.parametrize("tiles", range(1, 20))
@pytest.mark.parametrize("programs", [1, 3, 5, 7, 1000])
def test_every_part_of_a_group_has_a_tile(tiles, programs, monkeypatch):
    monkeypatch.setattr(triton_backend, "_programs", lambda device: programs)
    arguments = make_arguments(1, 8 * tiles, 3, 1, groups=1)
    parts = triton_backend._Problem(planar(arguments, 1, 3), True, True).parts()
    tiles_of_part = -(-tiles // parts)
    assert (parts - 1) * tiles_of_part < tiles <= parts * tiles_of_part


@pytest.mark.parametrize("name", ["u", "B", "C"])
def test_offsets_beyond_32_bits_are_correct(name):
    """Channels or states are 2³⁰ elements apart, so that the last offset exceeds 2³¹."""
    apart = 2**30
    arguments = make_arguments(1, 4, 3, 4, dtype=torch.float16)
    strided = on_device(arguments, torch.float16)
    # deterministic mode would fill the whole storage; otherwise the system allocates only memory that is touched
    torch.use_deterministic_algorithms(False)
    storage = torch.empty(3 * apart + 8, dtype=torch.float16, device=DEVICE)
    strided[name] = storage.as_strided((1, 4, 3), (apart, apart, 1)).copy_(arguments[name])
    options = {"delta_softplus": True}
    expected = selective_scan_reference(**double(arguments), **options)
    with torch.no_grad():
        y = selective_scan(**strided, **options, backend="triton")
    torch.testing.assert_close(y.double().cpu(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
def test_negative_steps_are_correct_in_a_tile_with_an_unused_state(discretization):
    """e^{ΔA} is near 1 for the three states, but may overflow in the unused fourth state of a tile."""
    arguments = make_arguments(1, 2, 10, 3) | {"delta_bias": None}
    arguments |= {"delta": torch.full((1, 2, 10), -100.0).double(), "A": torch.full((2, 3), -1e-4).double()}
    check(arguments, discretization=discretization)


def test_nan_in_a_step_propagates():
    arguments = on_device(make_arguments(1, 2, 10, 3))
    arguments["delta"][0, 1, 4] = float("nan")
    y = selective_scan(**arguments, delta_softplus=True, backend="triton")
    assert y[0, 1, 4:].isnan().all() and y[0, 0].isfinite().all()


def test_operator_passes_opcheck():
    arguments = on_device(make_arguments(1, 2, 9, 2, 1))
    tensors = [arguments[k].requires_grad_() for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    tensors = [t.unsqueeze(-2) if t.dim() > 2 else t for t in tensors]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(operator.scan, (*tensors, True, True, "triton", True), test_utils=tests)


def test_compiles_without_graph_breaks():
    arguments = {k: v.requires_grad_() for k, v in on_device(make_arguments(1, 2, 9, 2)).items()}

    def scan(**tensors):
        return selective_scan(**tensors, backend="triton", discretization="zoh", delta_softplus=True)

    expected = scan(**arguments, return_last_state=True)
    actual = torch.compile(scan, backend="aot_eager", fullgraph=True)(**arguments, return_last_state=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected, strict=True))


def test_float64_is_refused():
    arguments = {k: v.to(DEVICE) for k, v in make_arguments(1, 2, 5, 3).items()}
    with pytest.raises(RuntimeError, match="float64"):
        selective_scan(**arguments, backend="triton")


@pytest.mark.slow
def test_kernels_pass_the_self_test(monkeypatch):
    monkeypatch.setattr(triton_backend, "BLOCK", BLOCK_ON_GPUS)
    assert self_test.why_wrong(BACKENDS["triton"], torch.device(DEVICE)) is None


class WrongValues(TorchBackend):
    """A backend whose outputs, and so all gradients, are one per cent too large."""

    def scan(self, inputs):
        y, last_state = super().scan(inputs)
        return 1.01 * y, last_state


class WrongGradient(TorchBackend):
    """A backend with correct outputs and a gradient of A that is one per cent too large."""

    def scan(self, inputs):
        A = 1.01 * inputs.A - 0.01 * inputs.A.detach()
        return super().scan(inputs._replace(A=A))


class Failing(TorchBackend):
    """A backend that fails like kernels on a GPU that they were not compiled for."""

    def scan(self, inputs):
        raise RuntimeError("no kernel image")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [(WrongValues, "y"), (WrongGradient, "the gradient of A"), (Failing, "no kernel image")],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_self_test_reports_errors_of_a_backend(backend, reason):
    assert reason in self_test.why_wrong(backend(), torch.device(DEVICE))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, FakeTensorMode, lambda: torch.device("meta")])
def test_self_test_works_in_any_mode(mode):
    with mode():
        assert self_test.why_wrong(TorchBackend(), torch.device(DEVICE)) is None


@pytest.mark.skipif(COMPILED, reason="the kernels are compiled, not interpreted")
def test_interpreted_backend_comes_last():
    assert available_backends()[-1] == "triton"
    assert fastest_backend(torch.empty(0), "zoh").name != "triton"


CAPABILITIES = {"H100": 90, "A100": 80, "B200": 100}


@pytest.fixture(scope="module")
def compiled():
    """Return, for each compute capability, (name, bytes of a thread's stack) of all compiled kernels."""
    pytest.importorskip("triton.backends.nvidia")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    lines = run_program("compile_kernels.py", *CAPABILITIES.values(), env=env).splitlines()
    rows = [line.split() for line in lines]
    return {c: [(name, int(used)) for c_, name, used in rows if int(c_) == c] for c in CAPABILITIES.values()}


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES.values(), ids=CAPABILITIES)
def test_kernels_compile_for_absent_gpus(capability, compiled):
    """Every kernel compiles to machine code with states in registers; for H100, in both forms of compile_kernels.py."""
    assert {name for name, _ in compiled[capability]} == {"walk", "carry", "gradients"}
    # on the stack, a lane's states would take 128 bytes, and each of several values per state another 128
    version = tuple(map(int, importlib.import_module("triton").__version__.split(".")[:2]))
    most = 160 if version > (3, 6) else 192
    assert max(used for _, used in compiled[capability]) <= most, f"bytes of a thread's stack: {compiled[capability]}"


def test_network_needs_few_kernels():
    """The first step on a machine compiles every kernel, and `gradients` takes ten seconds."""
    pytest.importorskip("triton.backends.nvidia")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    counts = dict(line.split() for line in run_program("count_kernels.py", env=env).splitlines())
    assert int(counts["gradients"]) <= 3 and int(counts["walk"]) <= 30 and int(counts["carry"]) <= 8


@needs_gpu
def test_triton_is_the_fastest_backend_on_a_gpu():
    assert available_backends()[0] == "triton"
    assert fastest_backend(torch.empty(0, device="cuda"), "zoh").name == "triton"


@needs_gpu
def test_runs_on_a_second_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    arguments = {k: v.float().to("cuda:1") for k, v in make_arguments(1, 2, 40, 3).items()}
    y = selective_scan(**arguments, delta_softplus=True, backend="triton")
    expected = selective_scan_reference(**arguments, delta_softplus=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@needs_gpu
def test_runs_in_a_cuda_graph():
    arguments = {k: v.float().cuda() for k, v in make_arguments(1, 2, 300, 3).items()}
    expected = selective_scan(**arguments, delta_softplus=True, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = selective_scan(**arguments, delta_softplus=True, backend="triton")
    graph.replay()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@needs_gpu
def test_long_sequences_agree_with_pytorch():
    arguments = {k: v.float().cuda() for k, v in make_arguments(2, 8, 65536, 32).items()}
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

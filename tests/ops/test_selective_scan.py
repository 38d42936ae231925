"""The selective scan: fast backends match the sequential reference, in values and all gradients."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_mamba_mis.ops import available_backends, selective_scan, selective_scan_reference
from nnunet_mamba_mis.ops.selective_scan import operator
from nnunet_mamba_mis.ops.selective_scan.chunked import chunked_scan
from support.scans import (
    FAST_BACKENDS,
    INSTRUCTION_SETS,
    TOLERANCE,
    assert_same,
    assert_same_bits,
    check_scan,
    double,
    make_arguments,
    needs_native,
    planar,
    run_program,
    use_instruction_set,
    values_and_gradients,
    with_memory_order,
)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
@pytest.mark.parametrize("groups", [None, 1, 3], ids=["no-groups", "1-group", "3-groups"])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 257])
def test_backend_agrees_with_reference(backend, discretization, groups, length):
    arguments = make_arguments(2, 6, length, 5, groups)
    check_scan(backend, arguments, delta_softplus=True, discretization=discretization)


# only cpp gets several threads: PyTorch computes so few values on one thread
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "count"), [(name, count) for name in FAST_BACKENDS for count in ((1, 5) if name == "cpp" else (1,))]
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_backend_agrees_on_random_problems(backend, count, data, threads):
    threads(count)
    groups = data.draw(st.sampled_from([None, 1, 2]), label="groups")
    channels = data.draw(st.integers(1, 3), label="channels") * (groups or 1)
    # The native kernel has tiles of 32 positions and, with few rows, divides sequences of 1024 positions or more. Only
    # one example in five is that long, as the reference is slow.
    length = data.draw(st.sampled_from([*range(1, 71), *[1023, 1025] * 9]), label="length")
    shape = (data.draw(st.integers(1, 3), label="batch"), channels, length, data.draw(st.integers(1, 4), label="N"))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), label="dtype")
    arguments = make_arguments(
        *shape, groups, dtype, scale=data.draw(st.sampled_from([1e-6, 1.0, 30.0, 1e4]), label="Δ")
    )
    if data.draw(st.booleans(), label="channels last"):
        arguments = with_memory_order(lambda t: t.mT, arguments)
    for name in data.draw(st.sets(st.sampled_from(["D", "z", "delta_bias"])), label="left out"):
        arguments[name] = None
    discretization = data.draw(st.sampled_from(["zoh", "mamba"]), label="discretization")
    # without softplus, steps can be negative, and e^{ΔA} could overflow
    check_scan(backend, arguments, delta_softplus=True, discretization=discretization)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_backend_accepts_any_strides(backend):
    arguments = make_arguments(2, 4, 33, 3)
    strided = {
        name: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.repeat_interleave(2)[::2]
        for name, tensor in arguments.items()
    }
    strided["u"] = torch.cat([strided["u"], strided["u"]], dim=2)[:, :, :33]
    assert not strided["delta"].is_contiguous()
    check_scan(backend, arguments, strided, delta_softplus=True)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "no-softplus"])
@pytest.mark.parametrize("groups", [None, 2], ids=["no-groups", "2-groups"])
@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
@pytest.mark.parametrize("length", [1, 5])
def test_backend_passes_gradcheck(backend, discretization, length, groups, softplus):
    arguments = make_arguments(2, 2, length, 3, groups)
    # strided: every second value of a larger tensor
    inputs = tuple(v.repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for v in arguments.values())

    def scan(*tensors):
        options = {"return_last_state": True, "discretization": discretization, "backend": backend}
        return selective_scan(*tensors, softplus, **options)

    assert torch.autograd.gradcheck(scan, inputs)


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize("state", [0.0, -1e-30, -1e-12, -1e-4], ids=str)
def test_zero_order_hold_is_exact_near_zero(backend, state):
    """As ΔA vanishes, (e^{ΔA} − 1)/A approaches Δ + Δ²A/2, and its derivative by A approaches Δ²/2."""
    A = torch.full((1, 1), state, dtype=torch.float64, requires_grad=True)
    delta = torch.full((1, 1, 1), 1e-3, dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    y = selective_scan(one, delta, A, one, one, discretization="zoh", backend=backend)
    (grad_A,) = torch.autograd.grad(y.sum(), A)
    torch.testing.assert_close(y.item(), 1e-3 + 1e-6 * state / 2, rtol=1e-12, atol=0)
    # the gradient at A = 0 is right too, although fast backends replace this A by −1e-20
    torch.testing.assert_close(grad_A.item(), 5e-7 + 1e-9 * state / 3, rtol=1e-10, atol=0)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_float32_zero_order_hold_does_not_cancel(backend):
    """A plain e^{ΔA} − 1 in float32 would lose four of seven digits here, in the value and in the gradient."""
    arguments = make_arguments(1, 2, 50, 2)
    arguments |= {"A": -0.01 * torch.rand(2, 2).double(), "delta": 0.01 * torch.rand(1, 2, 50).double()}
    single = {k: v.float() for k, v in arguments.items()}
    check_scan(backend, arguments, single, 2e-6, discretization="zoh")


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_scanned_in_float32(backend, dtype):
    arguments = make_arguments(1, 3, 200, 4, dtype=dtype, scale=3)
    options = {"delta_softplus": True, "return_last_state": True}
    expected, expected_last = selective_scan_reference(**double(arguments), **options)
    with torch.autocast("cpu", dtype=dtype):
        y, last = selective_scan(**arguments, **options, backend=backend)
    assert y.dtype == dtype and last.dtype == torch.float32
    torch.testing.assert_close(last.double(), expected_last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_large_steps_stay_finite(backend):
    arguments = make_arguments(1, 2, 300, 4, dtype=torch.float32)
    arguments["delta"] = torch.full((1, 2, 300), 1e4)
    arguments["A"] = -torch.tensor([1e-6, 1.0, 32.0, 1e4]).repeat(2, 1)
    for discretization in ("zoh", "mamba"):
        results = values_and_gradients(selective_scan, arguments, discretization=discretization, backend=backend)
        assert all(t.isfinite().all() for t in results.values())


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("states", [1, 3, 5])
def test_negative_steps_without_softplus_are_correct(backend, states):
    """e^{ΔA} is near 1 for these states, but may overflow in unused lanes of their vector."""
    arguments = make_arguments(1, 2, 40, states, dtype=torch.float32)
    arguments |= {"delta": torch.full((1, 2, 40), -100.0), "A": torch.full((2, states), -1e-4), "delta_bias": None}
    for discretization in ("zoh", "mamba"):
        check_scan(backend, arguments, discretization=discretization)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("states", [1, 5, 32, 48])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set_agrees_with_reference(instruction_set, states, dtype, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    arguments = make_arguments(2, 4, 75, states, 2)
    given_type = {k: v.to(dtype) for k, v in arguments.items()}
    for discretization in ("zoh", "mamba"):
        check_scan("cpp", arguments, given_type, delta_softplus=True, discretization=discretization)


@needs_native
@pytest.mark.parametrize("shape", [(1, 1, 1500, 3), (1, 3, 1100, 2), (3, 2, 33, 4)], ids=str)
def test_native_scan_is_correct_for_any_number_of_threads(shape, threads):
    """With more threads than channels, a long sequence is divided into parts."""
    arguments = make_arguments(*shape)
    options = {"delta_softplus": True, "discretization": "zoh"}
    expected = values_and_gradients(selective_scan_reference, arguments, **options)
    for count in (1, 2, 5):
        threads(count)
        actual, again = (values_and_gradients(selective_scan, arguments, backend="cpp", **options) for _ in range(2))
        assert_same(actual, expected, TOLERANCE[torch.float64])
        assert_same_bits([actual, again])


@needs_native
def test_native_scan_without_kept_states_has_no_gradient():
    u = torch.randn(1, 2, 1, 9, requires_grad=True)
    b = torch.randn(1, 1, 3, 1, 9)
    y, _, _ = operator.scan(u, u, -torch.rand(2, 3), b, b, None, None, None, True, True, "cpp", False)
    with pytest.raises(RuntimeError, match="keep_starts"):
        y.sum().backward()


@needs_native
def test_native_gradients_are_bit_identical_for_any_number_of_threads(threads):
    arguments = make_arguments(2, 16, 300, 8, 2, dtype=torch.float32)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(values_and_gradients(selective_scan, arguments, backend="cpp", delta_softplus=True))
    assert_same_bits(results)


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_two_axes_of_positions_are_scanned_along_the_last(backend, order):
    height, width = 5, 9
    flat = make_arguments(2, 4, height * width, 3, 2)
    arguments = planar(flat, height, width)
    if order == "columns":  # like transposed views of images
        arguments = with_memory_order(lambda t: t.mT, arguments)
    actual = check_scan(backend, flat, arguments, delta_softplus=True, discretization="zoh")
    assert actual["y"].shape == (2, 4, height, width)


@needs_native
def test_native_scan_keeps_the_layout_of_its_input():
    """A column-major scan of channels-last features returns channels-last features without copies."""
    x = torch.randn(2, 6, 7, 4)
    columns = x.permute(0, 3, 2, 1)
    b = torch.randn(2, 6, 7, 8).permute(0, 3, 2, 1)
    y = selective_scan(columns, columns, -torch.rand(4, 8), b, b, delta_softplus=True, backend="cpp")
    assert y.stride() == columns.stride()


def test_operator_passes_opcheck():
    arguments = make_arguments(2, 4, 21, 3, 2)
    tensors = tuple(arguments[k].requires_grad_() for k in ("u", "delta", "A", "B", "C"))
    torch.library.opcheck(chunked_scan, (*tensors, True))


@needs_native
@pytest.mark.parametrize("optional", [True, False], ids=["with D, z and bias", "without"])
def test_native_operator_passes_opcheck(optional):
    arguments = make_arguments(2, 4, 21, 3, 2)
    tensors = [arguments[k].requires_grad_() for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    tensors = [t.unsqueeze(-2) if t.dim() > 2 else t for t in tensors]
    if not optional:
        tensors[5:] = [None, None, None]
    torch.library.opcheck(operator.scan, (*tensors, True, True, "cpp", True))


def test_scan_compiles_without_graph_breaks():
    arguments = {k: v.requires_grad_() for k, v in make_arguments(1, 2, 40, 3).items()}
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    expected = values_and_gradients(selective_scan, arguments, delta_softplus=True)
    assert_same(values_and_gradients(compiled, arguments, delta_softplus=True), expected, 1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_peak_memory_is_below_that_of_all_states(backend):
    """Forward and backward, with their inputs, gradients and copies, need less memory than all states."""
    # with this threshold, malloc returns large freed tensors to the system, so its cache does not count as peak memory
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    assert float(run_program("scan_memory.py", backend, env=env)) < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": torch.zeros(1, 2, 4)}, r"delta .*\(1, 2, 5\)"),
        ({"A": torch.zeros(3, 3)}, r"A .*\(2, 3\)"),
        ({"B": torch.zeros(1, 3, 3, 5)}, "B .*D = 2"),
        ({"B": torch.zeros(1, 0, 3, 5)}, "B .*D = 2"),
        ({"C": torch.zeros(1, 4, 5)}, "C .*N 3"),
        ({"C": torch.zeros(1, 2, 3, 5)}, "B and C .*groups"),
        ({"D": torch.zeros(3)}, r"D .*\(2,\)"),
        ({"z": torch.zeros(1, 2, 5, device="meta")}, "z .*cpu"),
        ({"u": torch.zeros(1, 2, 0), "delta": torch.zeros(1, 2, 0)}, "empty"),
        ({"A": torch.zeros(2, 3, dtype=torch.complex64)}, "A .*real"),
        ({"discretization": "euler"}, "'euler'"),
        ({"backend": "fastest"}, "'fastest'"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_argument_raises_value_error(change, message):
    arguments = make_arguments(1, 2, 5, 3, dtype=torch.float32) | change
    with pytest.raises(ValueError, match=message):
        selective_scan(**arguments)


def operator_arguments():
    """Return the tensors of the operator that `cpp` and `triton` share."""
    arguments = make_arguments(2, 4, 21, 3, 2, torch.float32)
    return {k: t.unsqueeze(-2) if t.dim() > 2 else t for k, t in arguments.items()}


def shortened(t):
    return t[..., 1:].contiguous()


def sparse(t):
    return t.to_sparse()


@needs_native
@pytest.mark.parametrize("change", [shortened, torch.Tensor.double, torch.Tensor.int, sparse], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", operator_arguments())
def test_operators_refuse_invalid_tensors(name, change):
    """The operators check arguments, as anyone can call them and native code has no bounds checks."""
    arguments = operator_arguments()
    arguments |= {name: change(arguments[name])}
    with pytest.raises(ValueError):
        operator.scan(*arguments.values(), True, True, "cpp", True)
    with pytest.raises(ValueError):
        grads = torch.randn(2, 4, 1, 21), torch.randn(2, 4, 3)
        operator.scan_backward(*grads, *arguments.values(), torch.randn(24), True, True, "cpp")
    if name in ("u", "delta", "A", "B", "C"):
        arguments = make_arguments(2, 4, 21, 3, 2, torch.float32)
        arguments |= {name: change(arguments[name])}
        with pytest.raises(ValueError):
            chunked_scan(*list(arguments.values())[:5], True)


@needs_native
@pytest.mark.parametrize("engine", ["torch", "none", "triton"])
def test_operator_refuses_unknown_engines(engine):
    arguments = operator_arguments()
    with pytest.raises(ValueError, match=engine):
        operator.scan(*arguments.values(), True, True, engine, True)


@needs_native
@pytest.mark.parametrize(
    ("name", "shape"), [("grad_y", (2, 4, 1, 20)), ("grad_last_state", (2, 4, 2)), ("starts", (23,))], ids=str
)
def test_backward_operator_refuses_invalid_gradients(name, shape):
    given = {"grad_y": (2, 4, 1, 21), "grad_last_state": (2, 4, 3), "starts": (24,)} | {name: shape}
    grad_y, grad_last_state, starts = map(torch.randn, given.values())
    with pytest.raises(ValueError, match=name):
        operator.scan_backward(grad_y, grad_last_state, *operator_arguments().values(), starts, True, True, "cpp")


def test_named_backend_never_falls_back():
    arguments = make_arguments(1, 2, 5, 3, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="mamba_ssm"):
        selective_scan(**arguments, backend="mamba_ssm")


def test_available_backends_are_listed_fastest_first():
    names = available_backends()
    assert names[-2:] == ["torch", "reference"]

"""The S6 layer as one native operation, compared with the reference scan of its projections."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_mamba_mis.architectures.scan_blocks import BFSS
from nnunet_mamba_mis.ops import s6, selective_scan_reference
from nnunet_mamba_mis.ops.selective_scan.native import native_s6, native_s6_backward
from support.scans import (
    INSTRUCTION_SETS,
    TOLERANCE,
    assert_same,
    assert_same_bits,
    double,
    needs_native,
    use_backend,
    use_instruction_set,
    with_gradients,
)

pytestmark = needs_native


def make_s6(batch, height, width, channels, states, dtype, scale=1.0):
    """Return arguments of `s6`; x is a slice of the channels of wider features."""
    torch.manual_seed(0)
    x = torch.randn(batch, height, width, channels + 2, dtype=dtype)[..., 1:-1]
    return {
        "x": x,
        "delta_weight": scale * torch.randn(channels, channels, dtype=dtype) / channels**0.5,
        "delta_bias": torch.randn(channels, dtype=dtype) - 1,
        "bc_weight": torch.randn(2 * states, channels, dtype=dtype) / channels**0.5,
        "A": -4 * torch.rand(channels, states, dtype=dtype),
        "D": torch.randn(channels, dtype=dtype),
    }


def reference_s6(x, delta_weight, delta_bias, bc_weight, A, D, discretization):
    """Compute `s6` position by position."""
    flat = x.flatten(1, 2)
    B, C = (flat @ bc_weight.T).chunk(2, dim=-1)
    options = {"delta_bias": delta_bias, "delta_softplus": True, "discretization": discretization}
    y = selective_scan_reference(flat.mT, (flat @ delta_weight.T).mT, A, B.mT, C.mT, D, **options)
    return y.mT.unflatten(1, x.shape[1:3])


def values_and_gradients(function, arguments, **options):
    leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
    return with_gradients({"y": function(**leaves, **options)}, leaves)


def compare_s6(arguments, discretization):
    expected = values_and_gradients(reference_s6, double(arguments), discretization=discretization)
    actual = values_and_gradients(s6, arguments, discretization=discretization)
    assert_same(actual, expected, TOLERANCE[arguments["x"].dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
@pytest.mark.parametrize(("channels", "states"), [(1, 1), (3, 5), (8, 32), (21, 48)], ids=str)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_s6_agrees_with_reference(instruction_set, channels, states, discretization, dtype, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    compare_s6(make_s6(2, 5, 9, channels, states, dtype), discretization)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_s6_agrees_on_random_problems(data, threads):
    threads(data.draw(st.sampled_from([1, 2, 5]), label="threads"))
    shape = tuple(data.draw(st.integers(1, high), label=name) for name, high in (("batch", 3), ("H", 9), ("W", 40)))
    widths = data.draw(st.integers(1, 9), label="channels"), data.draw(st.integers(1, 18), label="states")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), label="dtype")
    arguments = make_s6(*shape, *widths, dtype, scale=data.draw(st.sampled_from([1e-6, 1.0, 30.0]), label="Δ"))
    if data.draw(st.booleans(), label="columns"):
        arguments["x"] = arguments["x"].transpose(1, 2)
    compare_s6(arguments, data.draw(st.sampled_from(["zoh", "mamba"]), label="discretization"))


def test_s6_gradients_are_bit_identical_for_any_number_of_threads(threads):
    """The batch has two samples: two threads get one each, and five threads divide the sequences."""
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(values_and_gradients(s6, make_s6(2, 30, 40, 8, 16, torch.float32)))
    assert_same_bits(results)


def test_s6_without_native_code_gives_the_same_values(monkeypatch):
    arguments = make_s6(2, 6, 7, 4, 8, torch.float64)
    expected = s6(**arguments)
    use_backend("torch", monkeypatch)
    torch.testing.assert_close(s6(**arguments), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(0, 2, 2, 4)}, "x .*empty"),
        ({"x": torch.zeros(1, 2, 2, 5)}, r"delta_weight .*\(5, 5\)"),
        ({"x": torch.zeros(1, 2, 2, 4, dtype=torch.int64)}, "x .*real"),
        ({"A": torch.zeros(4, 4)}, r"bc_weight .*\(8, 4\)"),
        ({"D": torch.zeros(3)}, r"D .*\(4,\)"),
        ({"delta_bias": torch.zeros(4, device="meta")}, "delta_bias .*cpu"),
        ({"discretization": "mamab"}, "'mamab'"),
    ],
    ids=["empty", "channels", "integers", "states", "D", "device", "discretization"],
)
def test_s6_refuses_invalid_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        s6(**(make_s6(1, 2, 2, 4, 3, torch.float32) | change))


def test_s6_scans_half_precision_input_in_float32():
    arguments = {name: t.detach().half() for name, t in make_s6(1, 6, 7, 4, 8, torch.float32).items()}
    y = s6(**arguments)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), s6(**{k: t.float() for k, t in arguments.items()}), rtol=1e-3, atol=1e-3)


def test_s6_operator_passes_opcheck():
    k = {name: t.detach().requires_grad_() for name, t in make_s6(2, 3, 5, 4, 3, torch.float64).items()}
    weight = torch.cat([k["delta_weight"], k["bc_weight"]]).detach().requires_grad_()
    arguments = (k["x"].permute(0, 3, 1, 2).detach().requires_grad_(), weight, k["A"], k["D"], k["delta_bias"])
    torch.library.opcheck(native_s6, (*arguments, True, True))


def operator_arguments(dtype=torch.float32):
    """Return the tensors of `native_s6` with 3 channels and 4 states."""
    shapes = {"u": (1, 3, 2, 5), "weight": (11, 3), "A": (3, 4), "D": (3,), "delta_bias": (3,)}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


WRONG = {
    "u": [(1, 4, 2, 5), (3, 2, 5), (0, 3, 2, 5)],
    "weight": [(10, 3), (11, 4), (33,)],
    "A": [(4, 3), (3,), (3, 0)],
    "D": [(4,), (3, 1)],
    "delta_bias": [(2,), ()],
}


def wrong_tensors():
    """Yield each tensor with one property wrong: its shape, dtype, device or layout."""
    for name, right in operator_arguments().items():
        for wrong in (
            *map(torch.randn, WRONG[name]),
            right.double(),
            right.half(),
            right.to("meta"),
            right.to_sparse(),
        ):
            yield pytest.param(
                name, wrong, id=f"{name} {tuple(wrong.shape)} {wrong.dtype} {wrong.device} {wrong.layout}"
            )


@pytest.mark.parametrize(("name", "wrong"), list(wrong_tensors()))
def test_operators_refuse_invalid_tensors(name, wrong):
    """The operators check arguments, as anyone can call them and native code has no bounds checks."""
    arguments = operator_arguments() | {name: wrong}
    errors = (ValueError, RuntimeError, NotImplementedError)
    with pytest.raises(errors):
        native_s6(*arguments.values(), True, True)
    grads = torch.randn(1, 3, 2, 5), torch.randn(1, 3, 4), torch.randn(12)
    with pytest.raises(errors):
        native_s6_backward(*grads[:2], *arguments.values(), grads[2], True)


@pytest.mark.parametrize("name", ["grad_y", "grad_last_state", "starts"])
def test_backward_operator_refuses_invalid_gradients(name):
    given = {"grad_y": torch.randn(1, 3, 2, 5), "grad_last_state": torch.randn(1, 3, 4), "starts": torch.randn(12)}
    given |= {name: given[name][..., 1:]}
    with pytest.raises(ValueError, match=name):
        native_s6_backward(
            given["grad_y"], given["grad_last_state"], *operator_arguments().values(), given["starts"], True
        )


@pytest.mark.filterwarnings("ignore")  # warnings about deprecated tracing, and about code that tracing cannot follow
def test_traced_layer_computes_from_its_input():
    block = BFSS(4, d_state=3)
    x, other = torch.randn(2, 1, 3, 5, 4)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(block, x)(other), block(other))


def test_lazily_negated_views_are_negated():
    """The memory of such a view holds values of the opposite sign."""
    block = BFSS(4, d_state=3)
    x = torch.complex(*torch.randn(2, 1, 3, 5, 4)).conj().imag
    with torch.no_grad():
        torch.testing.assert_close(block(x), block(x.clone()))

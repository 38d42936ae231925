"""Operations of whole layers, S6 and pixelwise: native code against the PyTorch modules they stand for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunet_mamba_mis.architectures.scan_blocks import BFSS
from nnunet_mamba_mis.ops import Plus, Times, deferred, pixelwise, s6, selective_scan_reference
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.pixelwise import native_pixelwise
from nnunet_mamba_mis.ops.s6 import native_s6

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")
INSTRUCTION_SETS = native.instruction_sets() if native.available() else []
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}  # relative to the largest value of a tensor


def random_functional(y):
    """A loss with a different weight for every value of y."""
    generator = torch.Generator().manual_seed(1)
    return (y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum()


def values_and_gradients(function, leaves):
    """Result and gradients of a functional of it."""
    y = function()
    return [y.detach(), *torch.autograd.grad(random_functional(y), leaves)]


def assert_same(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        error = (a.double() - e.double()).abs().max()
        assert error <= tolerance * max(1.0, e.double().abs().max()), f"{tuple(e.shape)}: off by {error:.3g}"


def use_instruction_set(name, monkeypatch):
    chosen = native.load_library(name)
    monkeypatch.setattr(native, "library", lambda: chosen)


def compose(inputs, layers):
    """What `pixelwise` means."""
    x = torch.cat(inputs, dim=-1)
    for layer in layers:
        x = layer(x)
    return x


def make_chain(height, width, channels, dtype, batch=2):
    """Two inputs and operands of different strides, all kinds of layers, and everything that has a gradient."""
    torch.manual_seed(0)
    wide = torch.randn(batch, height, width, 3 * channels, dtype=dtype)
    part = wide[..., channels : 2 * channels].detach().requires_grad_()
    columns = torch.randn(batch, width, height, channels, dtype=dtype).transpose(1, 2).requires_grad_()
    factor = torch.randn(batch, channels, height, width, dtype=dtype).permute(0, 2, 3, 1).requires_grad_()
    term = torch.randn(batch, height, width, channels, dtype=dtype, requires_grad=True)
    norm = nn.LayerNorm(2 * channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    layers = [norm, nn.Linear(2 * channels, channels + 1), nn.SiLU(), nn.Linear(channels + 1, channels)]
    parameters = [p for layer in layers for p in layer.to(dtype).parameters()]
    return [part, columns], [*layers, Times(factor), Plus(term)], [part, columns, factor, term, *parameters]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (4, 8), (9, 15)], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 37])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_pixelwise_layers_agree_with_torch(instruction_set, channels, size, dtype, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    inputs, layers, leaves = make_chain(*size, channels, dtype)
    expected = values_and_gradients(lambda: compose(inputs, layers), leaves)
    assert_same(values_and_gradients(lambda: pixelwise(inputs, *layers), leaves), expected, TOLERANCE[dtype])


def test_deferred_layers_are_what_they_are_by_themselves():
    inputs, layers, leaves = make_chain(5, 7, 8, torch.float64)
    norm, last = nn.LayerNorm(16).double(), nn.Linear(16, 8).double()
    other = torch.randn(2, 5, 7, 8, dtype=torch.float64, requires_grad=True)
    leaves = [*leaves, other, *norm.parameters(), *last.parameters()]

    def separate():
        chain = compose(inputs, layers)
        return compose([other, chain], [norm, last, Times(compose([other], [nn.SiLU()]))])

    def together():
        return pixelwise([other, deferred(inputs, *layers)], norm, last, Times(deferred([other], nn.SiLU())))

    expected = values_and_gradients(separate, leaves)
    assert_same(values_and_gradients(together, leaves), expected, 1e-11)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # on torch operations
        torch.testing.assert_close(together().double(), separate().double(), rtol=0.05, atol=0.05)


def test_norm_of_nearly_equal_channels_is_as_exact_as_that_of_torch():
    x = (1000 + 1e-3 * torch.randn(1, 8, 8, 2)).requires_grad_()
    norm = nn.LayerNorm(2)
    expected = nn.functional.layer_norm(x.double(), (2,), eps=norm.eps)
    assert (pixelwise([x], norm) - expected).abs().max() <= 2 * (norm(x) - expected).abs().max() + 1e-6


def test_pixelwise_without_gradients_is_the_same():
    inputs, layers, _ = make_chain(5, 7, 8, torch.float32)
    expected = pixelwise(inputs, *layers)
    with torch.no_grad():
        assert torch.equal(pixelwise(inputs, *layers), expected)


def test_pixelwise_gradients_have_the_same_bits_on_any_number_of_threads(threads):
    results = []
    for count in (1, 2, 5):
        threads(count)
        inputs, layers, leaves = make_chain(40, 41, 8, torch.float32)
        results.append(values_and_gradients(lambda i=inputs, c=layers: pixelwise(i, *c), leaves))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_pixelwise_under_autocast_is_what_autocast_makes_of_the_layers():
    x, linear = torch.randn(1, 4, 4, 8), nn.Linear(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pixelwise([x], linear).dtype == torch.bfloat16


class Doubled(nn.Linear):
    """Not what its base class is."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda _module, _inputs, output: output + 1)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        nn.Linear(3, 2, bias=False),
        nn.LayerNorm(3, elementwise_affine=False),
        Times(torch.rand(1, 1, 1, 3)),
        Plus(torch.rand(1, 2, 2, 3).double()),
        Doubled(3, 2),
        hooked(),
    ],
    ids=["unknown", "no bias", "no weight", "broadcast", "other type", "subclass", "hook"],
)
def test_pixelwise_leaves_to_torch_what_it_does_not_know(layer):
    x = torch.randn(1, 2, 2, 3)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            assert torch.equal(pixelwise([x], layer), layer(x))


@pytest.mark.parametrize("layer", [nn.Linear(4, 2), nn.LayerNorm(2)], ids=["linear", "norm"])
def test_pixelwise_layers_of_another_width_fail_as_in_torch(layer):
    with pytest.raises(RuntimeError):
        pixelwise([torch.randn(1, 2, 2, 3)], layer)


def test_silu_of_extremes_is_that_of_torch():
    x = torch.tensor([-1e38, -1e4, -100.0, -88.0, -80.0, 0.0, 88.0, 1e38]).reshape(1, 2, 4, 1)
    torch.testing.assert_close(pixelwise([x], nn.SiLU()), nn.functional.silu(x), rtol=1e-5, atol=1e-30)


@pytest.mark.filterwarnings("ignore")  # that tracing is deprecated, and what it cannot follow
def test_traced_layers_follow_their_input():
    block = BFSS(4, d_state=3)
    x, other = torch.randn(2, 1, 3, 5, 4)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(block, x)(other), block(other))


def test_lazily_negated_views_are_negated():
    """The memory of such a view holds the opposite sign."""
    block = BFSS(4, d_state=3)
    x = torch.complex(*torch.randn(2, 1, 3, 5, 4)).conj().imag
    with torch.no_grad():
        torch.testing.assert_close(block(x), block(x.clone()))


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(3), nn.Linear(3, 2), nn.SiLU(), Times(torch.rand(1, 4, 5, 3))],
    ids=lambda v: type(v).__name__,
)
def test_a_single_layer_has_its_gradients(layer):
    x = torch.randn(1, 4, 5, 3, requires_grad=True)
    leaves = [x, *(layer.parameters() if isinstance(layer, nn.Module) else [])]
    expected = values_and_gradients(lambda: layer(x), leaves)
    assert_same(values_and_gradients(lambda: pixelwise([x], layer), leaves), expected, 1e-5)


def test_every_norm_has_its_own_eps():
    x = 1e-3 * torch.randn(1, 3, 4, 5)
    layers = [nn.LayerNorm(5, eps=1e-2), nn.LayerNorm(5, eps=1e-7)]
    torch.testing.assert_close(pixelwise([x], *layers), compose([x], layers))


def test_pixelwise_operator_passes_opcheck():
    inputs, layers, _ = make_chain(3, 5, 4, torch.float64)
    tensors = [*inputs, layers[4].factor, layers[5].term]
    parameters = [p for layer in layers[:4] for p in layer.parameters()]
    kinds = [0, 0, 1, 2, 3, 4, 3, 0, 5, 0, 6]  # load, load, concat, norm, linear, silu, linear, load, times, load, plus
    torch.library.opcheck(native_pixelwise, (tensors, parameters, kinds, [1e-5] * len(kinds)))


def make_s6(batch, height, width, channels, states, dtype, scale=1.0):
    """Arguments of `s6`; x is a part of the channels of wider features."""
    torch.manual_seed(0)
    x = torch.randn(batch, height, width, channels + 2, dtype=dtype)[..., 1:-1].detach().requires_grad_()
    return {
        "x": x,
        "delta_weight": scale * torch.randn(channels, channels, dtype=dtype) / channels**0.5,
        "delta_bias": torch.randn(channels, dtype=dtype) - 1,
        "bc_weight": torch.randn(2 * states, channels, dtype=dtype) / channels**0.5,
        "A": -4 * torch.rand(channels, states, dtype=dtype),
        "D": torch.randn(channels, dtype=dtype),
    }


def reference_s6(x, delta_weight, delta_bias, bc_weight, A, D, discretization):
    """`s6` position by position."""
    flat = x.flatten(1, 2)
    B, C = (flat @ bc_weight.T).chunk(2, dim=-1)
    y = selective_scan_reference(
        flat.mT,
        (flat @ delta_weight.T).mT,
        A,
        B.mT,
        C.mT,
        D,
        delta_bias=delta_bias,
        delta_softplus=True,
        discretization=discretization,
    )
    return y.mT.unflatten(1, x.shape[1:3])


def compare_s6(arguments, discretization):
    leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
    exact = {name: t.detach().double().requires_grad_() for name, t in arguments.items()}
    expected = values_and_gradients(lambda: reference_s6(**exact, discretization=discretization), list(exact.values()))
    actual = values_and_gradients(lambda: s6(**leaves, discretization=discretization), list(leaves.values()))
    assert_same(actual, expected, TOLERANCE[arguments["x"].dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
@pytest.mark.parametrize(("channels", "states"), [(1, 1), (3, 5), (8, 32), (21, 48)], ids=str)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_s6_agrees_with_reference(instruction_set, channels, states, discretization, dtype, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    compare_s6(make_s6(2, 5, 9, channels, states, dtype), discretization)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_s6_agrees_on_random_problems(data):
    before = torch.get_num_threads()
    torch.set_num_threads(data.draw(st.sampled_from([1, 2, 5]), label="threads"))
    try:
        shape = tuple(data.draw(st.integers(1, high), label=name) for name, high in (("batch", 3), ("H", 9), ("W", 40)))
        widths = data.draw(st.integers(1, 9), label="channels"), data.draw(st.integers(1, 18), label="states")
        dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), label="dtype")
        arguments = make_s6(*shape, *widths, dtype, scale=data.draw(st.sampled_from([1e-6, 1.0, 30.0]), label="Δ"))
        if data.draw(st.booleans(), label="columns"):
            arguments["x"] = arguments["x"].transpose(1, 2)
        compare_s6(arguments, data.draw(st.sampled_from(["zoh", "mamba"]), label="discretization"))
    finally:
        torch.set_num_threads(before)


def test_s6_gradients_have_the_same_bits_on_any_number_of_threads(threads):
    """Two samples: on two threads each has one, on five the sequences are cut."""
    results = []
    for count in (1, 2, 5):
        threads(count)
        leaves = {name: t.detach().requires_grad_() for name, t in make_s6(2, 30, 40, 8, 16, torch.float32).items()}
        results.append(values_and_gradients(lambda k=leaves: s6(**k), list(leaves.values())))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_s6_without_native_code_is_the_same(monkeypatch):
    arguments = make_s6(2, 6, 7, 4, 8, torch.float64)
    expected = s6(**arguments)
    monkeypatch.setattr(sys.modules[s6.__module__], "fastest_backend", lambda *_: "torch")
    torch.testing.assert_close(s6(**arguments), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(0, 2, 2, 4)}, "not empty"),
        ({"x": torch.zeros(1, 2, 2, 5)}, r"delta_weight must be \(5, 5\)"),
        ({"x": torch.zeros(1, 2, 2, 4, dtype=torch.int64)}, "x must be real"),
        ({"A": torch.zeros(4, 4)}, r"bc_weight must be \(8, 4\)"),
        ({"D": torch.zeros(3)}, r"D must be \(4,\)"),
        ({"delta_bias": torch.zeros(4, device="meta")}, "delta_bias must be on cpu"),
        ({"discretization": "mamab"}, "discretization 'mamab'"),
    ],
    ids=["empty", "channels", "integers", "states", "D", "device", "discretization"],
)
def test_s6_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        s6(**(make_s6(1, 2, 2, 4, 3, torch.float32) | change))


def test_s6_of_half_precision_is_scanned_in_float32():
    arguments = {name: t.detach().half() for name, t in make_s6(1, 6, 7, 4, 8, torch.float32).items()}
    y = s6(**arguments)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), s6(**{k: t.float() for k, t in arguments.items()}), rtol=1e-3, atol=1e-3)


def test_s6_operator_passes_opcheck():
    k = {name: t.detach().requires_grad_() for name, t in make_s6(2, 3, 5, 4, 3, torch.float64).items()}
    weight = torch.cat([k["delta_weight"], k["bc_weight"]]).detach().requires_grad_()
    arguments = (k["x"].permute(0, 3, 1, 2).detach().requires_grad_(), weight, k["A"], k["D"], k["delta_bias"])
    torch.library.opcheck(native_s6, (*arguments, True, True))


# nnU-Net imports scikit-learn; what it prints: how many threads the native code adds to those of torch
THREADS = """
import os
import sklearn.metrics
import torch
from nnunet_mamba_mis.ops import selective_scan

torch.set_num_threads(3)
torch.rand(1 << 20).exp()
before = len(os.listdir("/proc/self/task"))
x, delta, B = torch.rand(4, 8, 512), torch.rand(4, 8, 512), torch.rand(4, 2, 512)
selective_scan(x, delta, -torch.rand(8, 2), B, B, backend="cpp")
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_native_code_works_with_the_threads_of_torch_beside_other_openmp_runtimes():
    """Threads of two pools would spin against each other."""
    ran = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True)
    assert ran.stdout == "0\n", ran.stderr

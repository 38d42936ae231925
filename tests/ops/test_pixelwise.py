"""Pixelwise expressions in native code, compared with the PyTorch layers that they replace."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as prune_utils
from torch.utils.checkpoint import checkpoint

from nnunet_mamba_mis.ops import Evaluator, concat, lazy
from nnunet_mamba_mis.ops import pixelwise as pixelwise_module
from nnunet_mamba_mis.ops.native_pixelwise import native_pixelwise, native_pixelwise_backward
from support.scans import (
    INSTRUCTION_SETS,
    TOLERANCE,
    assert_same,
    assert_same_bits,
    needs_native,
    use_instruction_set,
    with_gradients,
)

pytestmark = needs_native


@pytest.fixture
def only_native(monkeypatch):
    """Make a test fail if an expression falls back to torch."""

    def fail(*_):
        raise AssertionError("not computed by native code")

    monkeypatch.setattr(pixelwise_module, "by_torch", fail)


class Chain(nn.Module):
    """An expression with every kind of layer, on tensors of different strides."""

    def __init__(self, height, width, channels, dtype, batch=2):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            [
                nn.LayerNorm(2 * channels),
                nn.Linear(2 * channels, channels + 1),
                nn.SiLU(),
                nn.Linear(channels + 1, channels, bias=False),
            ]
        ).to(dtype)
        nn.init.normal_(self.layers[0].weight)
        nn.init.normal_(self.layers[0].bias)
        wide = torch.randn(batch, height, width, 3 * channels, dtype=dtype)
        self.tensors = [
            wide[..., channels : 2 * channels].detach().requires_grad_(),
            torch.randn(batch, width, height, channels, dtype=dtype).transpose(1, 2).requires_grad_(),
            torch.randn(batch, channels, height, width, dtype=dtype).permute(0, 2, 3, 1).requires_grad_(),
            torch.randn(batch, height, width, channels, dtype=dtype, requires_grad=True),
        ]
        self.evaluate = Evaluator()

    def forward(self):
        a, b, factor, term = self.tensors
        gate = lazy(factor).then(F.silu)
        return self.evaluate(concat(lazy(a), lazy(b)).then(*self.layers) * gate + lazy(term))

    def by_torch(self):
        """Compute the expression layer by layer."""
        a, b, factor, term = self.tensors
        x = torch.cat([a, b], dim=-1)
        for layer in self.layers:
            x = layer(x)
        return x * F.silu(factor) + term

    def values_and_gradients(self, function):
        """Return the result and the gradients of its randomly weighted sum, keyed by name."""
        leaves = {str(i): t for i, t in enumerate(self.tensors)} | dict(self.named_parameters())
        return with_gradients({"y": function()}, leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (4, 8), (9, 15)], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 37])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_expression_agrees_with_torch(instruction_set, channels, size, dtype, monkeypatch, only_native):
    use_instruction_set(instruction_set, monkeypatch)
    chain = Chain(*size, channels, dtype)
    expected = chain.values_and_gradients(chain.by_torch)
    assert_same(chain.values_and_gradients(chain), expected, TOLERANCE[dtype])


def test_expressions_nest(only_native):
    x, other = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    norm, linear = nn.LayerNorm(8).double(), nn.Linear(8, 4).double()
    inner = lazy(x).then(F.silu) * lazy(other)
    y = Evaluator()(concat(lazy(other), inner).then(norm, linear) * lazy(other).then(F.silu))
    expected = linear(norm(torch.cat([other, F.silu(x) * other], dim=-1))) * F.silu(other)
    torch.testing.assert_close(y, expected)


def test_expression_without_gradients_gives_the_same_values(only_native):
    chain = Chain(5, 7, 8, torch.float32)
    expected = chain()
    with torch.no_grad():
        assert torch.equal(chain(), expected)


def test_gradients_are_bit_identical_for_any_number_of_threads(threads):
    chain = Chain(40, 41, 8, torch.float32)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(chain.values_and_gradients(chain))
    assert_same_bits(results)


def test_torch_runs_the_layers_under_autocast():
    chain = Chain(5, 7, 8, torch.float32)
    chain()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(chain(), chain.by_torch())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_does_not_change_gradients(reentrant, only_native):
    x, layers = torch.randn(1, 2, 3, 4, requires_grad=True), (nn.LayerNorm(4), nn.Linear(4, 3), F.silu)

    def run(x):
        return Evaluator()(lazy(x).then(*layers))

    (expected,) = torch.autograd.grad(run(x).sum(), x)
    checkpoint(run, x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_tensor_without_layers_is_returned_unchanged():
    x = torch.randn(1, 2, 2, 3)
    assert Evaluator()(lazy(x)) is x


def test_norm_of_nearly_equal_channels_is_as_exact_as_in_torch(only_native):
    x = (1000 + 1e-3 * torch.randn(1, 8, 8, 2)).requires_grad_()
    norm = nn.LayerNorm(2)
    expected = F.layer_norm(x.double(), (2,), eps=norm.eps)
    assert (Evaluator()(lazy(x).then(norm)) - expected).abs().max() <= 2 * (norm(x) - expected).abs().max() + 1e-6


class Doubled(nn.Linear):
    """A linear layer whose forward differs from that of its base class."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked(layer):
    layer.register_forward_hook(lambda _module, _inputs, output: output + 1)
    return layer


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        nn.LayerNorm(3, elementwise_affine=False),
        nn.LayerNorm((2, 3)),
        Doubled(3, 2),
        hooked(nn.Linear(3, 3)),
        hooked(nn.SiLU()),
        lambda x: x * torch.ones(1, 1, 1, 3),
    ],
    ids=["unknown", "no weight", "wider norm", "subclass", "hook", "hook of SiLU", "function"],
)
def test_torch_runs_layers_that_native_code_does_not_support(layer, context):
    x = torch.randn(1, 2, 2, 3)
    with context():
        torch.testing.assert_close(Evaluator()(lazy(x).then(layer)), layer(x))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 1, 1, 3), torch.float32), ((1, 2, 2, 1), torch.float32), ((1, 2, 2, 3), torch.float64)],
    ids=str,
)
def test_operands_are_broadcast_and_promoted_as_in_torch(shape, dtype):
    x, other = torch.randn(1, 2, 2, 3), torch.rand(shape, dtype=dtype)
    assert torch.equal(Evaluator()(lazy(x) * lazy(other)), x * other)
    assert torch.equal(Evaluator()(lazy(x) + lazy(other)), x + other)


def with_weight(layer, *shape):
    """Give a layer a weight that contradicts the layer's declared size."""
    layer.weight = nn.Parameter(torch.randn(shape))
    return layer


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(4, 2), nn.LayerNorm(2), with_weight(nn.Linear(3, 3), 3, 2), with_weight(nn.LayerNorm(3), 2)],
    ids=["linear", "norm", "linear with another weight", "norm with another weight"],
)
def test_layers_of_a_wrong_width_fail_as_in_torch(layer, context):
    with pytest.raises(RuntimeError), context():
        Evaluator()(lazy(torch.randn(1, 2, 2, 3)).then(layer))


def test_weight_overrides_the_declared_size_of_a_layer():
    layer, x = with_weight(nn.Linear(5, 3), 3, 4), torch.randn(1, 2, 2, 4)
    torch.testing.assert_close(Evaluator()(lazy(x).then(layer)), layer(x))


def change_weight(layer):
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def change_data(layer):
    layer.weight.data = torch.randn_like(layer.weight)


def change_in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(2)


def change_layout(layer):
    layer.weight.data = torch.randn_like(layer.weight).t().contiguous().t()


def change_width(layer):
    layer.weight, layer.bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))


def parametrize(layer):
    nn.utils.parametrizations.weight_norm(layer)


def remove_bias(layer):
    layer.bias = None


def replace_forward(layer):
    layer.forward = lambda x: 3 * x


def prune(layer):
    prune_utils.identity(layer, "weight")
    with torch.no_grad():
        layer.weight_orig.mul_(2)  # calling the layer recomputes `weight` from it


def make_weight_a_buffer(layer):
    weight = 2 * layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight.requires_grad_())


def make_weight_a_subclass(layer):
    class Halved(torch.Tensor):
        """A tensor that represents half of its stored values, as a quantized weight might."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is F.linear:
                x, weight, bias = args
                return F.linear(x, weight.as_subclass(torch.Tensor) / 2, bias)
            return super().__torch_function__(func, types, args, kwargs or {})

    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Halved))


OTHERS = [replace_forward, prune, make_weight_a_buffer, make_weight_a_subclass]
CHANGES = [
    *OTHERS,
    change_weight,
    change_data,
    change_in_place,
    change_layout,
    change_width,
    parametrize,
    remove_bias,
    hooked,
]


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_plan_follows_changes_of_a_layer(change, context):
    layer, x, evaluate = nn.Linear(4, 4), torch.randn(1, 3, 3, 4), Evaluator()
    with context():
        evaluate(lazy(x).then(layer))
        change(layer)
        torch.testing.assert_close(evaluate(lazy(x).then(layer)), layer(x))


def count_calls(module, register):
    """Add a hook to a module, or to all if `register` is global; return the list of calls and the handle."""
    calls = []
    handle = getattr(module, register, None) or getattr(nn.modules.module, register)
    return calls, handle(lambda *_, **__: calls.append(1) or None)


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_module_forward_hook",
    "register_module_forward_pre_hook",
    "register_module_full_backward_hook",
    "register_module_full_backward_pre_hook",
]


@pytest.mark.parametrize("planned", [True, False], ids=["planned before", "new"])
@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 3), nn.SiLU(), nn.Sequential(nn.Linear(3, 3))], ids=["linear", "silu", "chain"]
)
def test_hooks_run(layer, register, planned):
    x, evaluate = torch.randn(1, 2, 2, 3, requires_grad=True), Evaluator()
    if planned:
        evaluate(lazy(x).then(layer))
    calls, handle = count_calls(layer, register)
    try:
        evaluate(lazy(x).then(layer)).sum().backward()
    finally:
        handle.remove()
    assert calls


def test_in_place_layer_changes_its_input():
    x = torch.randn(1, 2, 2, 3)
    before = x.clone()
    with torch.no_grad():
        Evaluator()(lazy(x).then(nn.SiLU(inplace=True)))
    torch.testing.assert_close(x, F.silu(before))


def test_replaced_class_method_runs(monkeypatch):
    layer, x = nn.Linear(3, 3), torch.randn(1, 2, 2, 3)
    monkeypatch.setattr(nn.Linear, "forward", lambda _self, x: 2 * x)
    assert torch.equal(Evaluator()(lazy(x).then(layer)), 2 * x)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_plan_follows_changes_of_dtype_and_eps(context, only_native):
    layer, x, evaluate = nn.LayerNorm(4), 1e-3 * torch.randn(1, 3, 3, 4), Evaluator()
    with context():
        evaluate(lazy(x).then(layer))
        layer.eps = 1e-2
        torch.testing.assert_close(evaluate(lazy(x).then(layer)), layer(x))
        layer.double()
        torch.testing.assert_close(evaluate(lazy(x.double()).then(layer)), layer(x.double()))


def test_plan_follows_parameters_of_functional_calls():
    chain, other = Chain(3, 5, 4, torch.float32), Chain(3, 5, 4, torch.float32)
    nn.init.normal_(other.layers[1].weight)
    chain()
    with torch.no_grad():
        result = torch.func.functional_call(chain, dict(other.named_parameters()), ())
        assert torch.equal(result, other())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_have_their_own_plans(duplicate):
    chain = Chain(3, 5, 4, torch.float32)
    chain.tensors = [t.detach() for t in chain.tensors]
    with torch.no_grad():
        expected = chain()
        duplicated = duplicate(chain)
        nn.init.zeros_(chain.layers[1].weight)
        assert torch.equal(duplicated(), expected)


def test_parameters_of_another_dtype_fail_as_in_torch():
    x, layer = torch.randn(1, 2, 2, 3), nn.Linear(3, 3).double()
    with pytest.raises(RuntimeError):
        Evaluator()(lazy(x).then(layer))


def test_silu_matches_torch_at_extremes(only_native):
    x = torch.tensor([-1e38, -1e4, -100.0, -88.0, -80.0, 0.0, 88.0, 1e38]).reshape(1, 2, 4, 1)
    torch.testing.assert_close(Evaluator()(lazy(x).then(F.silu)), F.silu(x), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("layer", [nn.LayerNorm(3), nn.Linear(3, 2), nn.SiLU()], ids=lambda v: type(v).__name__)
def test_single_layer_has_the_gradients_of_torch(layer, only_native):
    x = torch.randn(1, 4, 5, 3, requires_grad=True)
    leaves = {"x": x, **dict(layer.named_parameters())}
    results = [Evaluator()(lazy(x).then(layer)), layer(x)]
    actual, expected = (with_gradients({"y": y}, leaves) for y in results)
    assert_same(actual, expected, 1e-5)


def test_each_norm_keeps_its_own_eps(only_native):
    x = 1e-3 * torch.randn(1, 3, 4, 5)
    wide, narrow = nn.LayerNorm(5, eps=1e-2), nn.LayerNorm(5, eps=1e-7)
    torch.testing.assert_close(Evaluator()(lazy(x).then(wide, narrow)), narrow(wide(x)))


def test_compiles_without_graph_breaks():
    chain = Chain(3, 5, 4, torch.float64)
    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True)
    assert_same(chain.values_and_gradients(compiled), chain.values_and_gradients(chain), 1e-12)


def test_operator_passes_opcheck():
    chain = Chain(3, 5, 4, torch.float64)
    kinds = [
        0,
        0,
        1,
        2,
        3,
        4,
        7,
        0,
        5,
        0,
        6,
    ]  # load, load, concat, norm, linear, silu, project, load, times, load, plus
    arguments = (chain.tensors, list(chain.parameters()), kinds, [1e-5] * len(kinds))
    torch.library.opcheck(native_pixelwise, arguments)


STEPS = [0, 2, 3, 4, 0, 5]  # load, norm, linear, silu, load, times


def native_arguments():
    tensors = [torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2, 4)]
    return {
        "tensors": tensors,
        "parameters": [torch.randn(3), torch.randn(3), torch.randn(4, 3), torch.randn(4)],
        "kinds": STEPS,
        "eps": [1e-5] * len(STEPS),
    }


def replaced(values, index, value):
    return [*values[:index], value, *values[index + 1 :]]


WRONG = {
    "channels of a tensor": lambda k: {"tensors": replaced(k["tensors"], 0, torch.randn(1, 2, 2, 5))},
    "pixels of a tensor": lambda k: {"tensors": replaced(k["tensors"], 1, torch.randn(1, 2, 3, 4))},
    "axes of a tensor": lambda k: {"tensors": replaced(k["tensors"], 0, torch.randn(2, 2, 3))},
    "no pixels": lambda k: {"tensors": [t[:0] for t in k["tensors"]]},
    "no tensors": lambda k: {"tensors": []},
    "one tensor too many": lambda k: {"tensors": [*k["tensors"], torch.randn(1, 2, 2, 3)]},
    "type of a tensor": lambda k: {"tensors": replaced(k["tensors"], 1, torch.randn(1, 2, 2, 4).double())},
    "half precision": lambda k: {name: [t.half() for t in k[name]] for name in ("tensors", "parameters")},
    "type of a parameter": lambda k: {"parameters": replaced(k["parameters"], 2, torch.randn(4, 3).double())},
    "integers": lambda k: {"parameters": replaced(k["parameters"], 3, torch.ones(4, dtype=torch.int32))},
    "columns of a weight": lambda k: {"parameters": replaced(k["parameters"], 2, torch.randn(4, 2))},
    "axes of a weight": lambda k: {"parameters": replaced(k["parameters"], 2, torch.randn(12))},
    "length of a bias": lambda k: {"parameters": replaced(k["parameters"], 3, torch.randn(3))},
    "device of a weight": lambda k: {"parameters": replaced(k["parameters"], 2, torch.randn(4, 3, device="meta"))},
    "layout of a weight": lambda k: {"parameters": replaced(k["parameters"], 2, torch.randn(4, 3).to_sparse())},
    "parameters missing": lambda k: {"parameters": k["parameters"][:3]},
    "one parameter too many": lambda k: {"parameters": [*k["parameters"], torch.randn(3)]},
    "no steps": lambda _: {"kinds": [], "eps": []},
    "unknown step": lambda k: {"kinds": replaced(STEPS, 3, 7)},
    "negative step": lambda k: {"kinds": replaced(STEPS, 3, -1)},
    "join of a single value": lambda _: {"kinds": [5, *STEPS[1:]]},
    "layer on an empty stack": lambda _: {"kinds": [4, *STEPS[1:]]},
    "two results": lambda k: {"kinds": [*STEPS[:-1], 4]},
    "eps missing": lambda _: {"eps": [1e-5]},
}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("wrong", WRONG)
def test_operator_refuses_invalid_arguments(wrong, backward):
    """The operator checks its arguments: anyone can call it, and native code has no bounds checks."""
    arguments = native_arguments()
    arguments |= WRONG[wrong](arguments)
    operator = native_pixelwise_backward if backward else native_pixelwise
    given = [torch.randn(1, 2, 2, 4)] if backward else []
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        operator(*given, *arguments.values())


@pytest.mark.parametrize(
    "grad_y",
    [torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2), torch.randn(1, 2, 2, 4).double()],
    ids=["channels", "axes", "type"],
)
def test_backward_operator_refuses_invalid_gradients(grad_y):
    with pytest.raises(ValueError, match="grad_y"):
        native_pixelwise_backward(grad_y, *native_arguments().values())

"""Operators under torch.func transforms, dual numbers and higher derivatives match plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.ops import Evaluator, lazy, s6, selective_scan
from nnunet_mamba_mis.ops.selective_scan.native import native_s6
from support.scans import needs_native

CHANNELS, STATES, SIZE = 3, 4, (3, 5)


def make(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


X, V = make(2, *SIZE, CHANNELS), make(2, *SIZE, CHANNELS).flip(0)
A, D, BIAS = -make(CHANNELS, STATES).abs(), make(CHANNELS), make(CHANNELS)
DELTA_WEIGHT, BC_WEIGHT = make(CHANNELS, CHANNELS), make(2 * STATES, CHANNELS)


def s6_layer(x):
    return s6(x, DELTA_WEIGHT, BIAS, BC_WEIGHT, A, D)


def s6_operator(x):
    weight = torch.cat([DELTA_WEIGHT, BC_WEIGHT])
    return native_s6(x.permute(0, 3, 1, 2), weight, A, D, BIAS, True, torch.is_grad_enabled())[0].permute(0, 2, 3, 1)


def scan(backend):
    def run(x):
        u = x.permute(0, 3, 1, 2).flatten(2)
        delta, B, C = (F.linear(u.mT, w).mT for w in (DELTA_WEIGHT, BC_WEIGHT[:STATES], BC_WEIGHT[STATES:]))
        options = {"delta_softplus": True, "return_last_state": True, "discretization": "zoh", "backend": backend}
        y, last_state = selective_scan(u, delta, A, B, C, D, None, BIAS, **options)
        return y.unflatten(-1, x.shape[1:3]).permute(0, 2, 3, 1) + last_state.sum(-1)[:, None, None]

    return run


def s6_by_reference(x):
    u = x.permute(0, 3, 1, 2).flatten(2)
    delta, B, C = (F.linear(u.mT, w).mT for w in (DELTA_WEIGHT, BC_WEIGHT[:STATES], BC_WEIGHT[STATES:]))
    options = {"delta_softplus": True, "discretization": "zoh", "backend": "reference"}
    y = selective_scan(u, delta, A, B, C, D, None, BIAS, **options)
    return y.unflatten(-1, x.shape[1:3]).permute(0, 2, 3, 1)


NORM, LINEAR = nn.LayerNorm(CHANNELS).double(), nn.Linear(CHANNELS, CHANNELS).double()
nn.init.normal_(NORM.weight)
evaluate = Evaluator()


def pixelwise(x):
    return evaluate(lazy(x).then(NORM, LINEAR, F.silu) * lazy(x) + lazy(x))


def layers(x):
    return F.silu(LINEAR(NORM(x))) * x + x


OPERATIONS = {
    "s6": (s6_layer, s6_by_reference),
    "s6's operator": (s6_operator, s6_by_reference),
    "scan by cpp": (scan("cpp"), scan("reference")),
    "scan by torch": (scan("torch"), scan("reference")),
    "pixelwise": (pixelwise, layers),
}


def squares(f):
    return lambda x: f(x).square().sum()


def dual_numbers(f):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(X, V))).tangent


def second_derivative(f):
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(squares(f)(x), x, create_graph=True)
    return torch.autograd.grad((gradient * V).sum(), x)[0]


def batched_gradients(f):
    x = X.clone().requires_grad_()
    y = f(x)
    return torch.autograd.grad(y, x, torch.stack([torch.ones_like(y), V]), is_grads_batched=True)[0]


# a few values of an image, for transforms that trace the scan position by position
FEW = slice(1), slice(1), slice(2)
TRANSFORMS = {
    "jvp": lambda f: jvp(f, (X,), (V,))[1],
    "vmap": lambda f: vmap(lambda x: f(x[None]))(X),
    "grad": lambda f: grad(squares(f))(X),
    "vmap of grad": lambda f: vmap(grad(lambda x: squares(f)(x[None])))(X),
    "vjp": lambda f: vjp(f, X)[1](V)[0],
    "jacfwd": lambda f: jacfwd(f)(X[:1]),
    "jacrev": lambda f: jacrev(f)(X[:1]),
    "hessian": lambda f: hessian(squares(f))(X[:1]),
    "functionalize": lambda f: functionalize(f)(X),
    "linearize": lambda f: linearize(f, X[FEW])[1](V[FEW]),
    "dual numbers": dual_numbers,
    "second derivative": second_derivative,
    "batched gradients": batched_gradients,
}
# the same transforms for plain operations, without tracing the operations
PLAIN_TRANSFORMS = TRANSFORMS | {"linearize": lambda f: jvp(f, (X[FEW],), (V[FEW],))[1]}


@needs_native
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad], ids=["grad", "no_grad"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.filterwarnings("ignore")  # torch warns about its own internals
def test_transform_matches_that_of_plain_operations(transform, operation, context):
    if context is torch.no_grad and transform in ("second derivative", "batched gradients", "hessian"):
        pytest.skip("needs gradients (the hessian needs them for SiLU)")
    function, plain = OPERATIONS[operation]
    with context():
        expected, actual = PLAIN_TRANSFORMS[transform](plain), TRANSFORMS[transform](function)
    if "scan" not in operation:
        assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("order", ["compiled derivative", "derivative of compiled"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_operator_has_its_forward_derivative(order):
    if order == "compiled derivative":
        tangent = torch.compile(lambda x: jvp(s6_layer, (x,), (V,))[1], backend="aot_eager")(X)
    else:
        _, tangent = jvp(torch.compile(s6_layer, backend="aot_eager"), (X,), (V,))
    torch.testing.assert_close(tangent, jvp(s6_by_reference, (X,), (V,))[1])


@needs_native
@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
@pytest.mark.parametrize("groups", [1, 2])
def test_scan_passes_gradgradcheck(backend, discretization, groups):
    shapes = [(1, 2, 3), (1, 2, 3), (2, 2), (1, groups, 2, 3), (1, groups, 2, 3), (2,), (1, 2, 3), (2,)]
    tensors = tuple(make(*shape).requires_grad_() for shape in shapes)

    def run(*tensors):
        options = {"return_last_state": True, "discretization": discretization, "backend": backend}
        return selective_scan(*tensors, True, **options)

    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)
    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


@needs_native
def test_parameters_have_second_derivatives():
    """Penalties on gradients need second derivatives with respect to all inputs, even a parameter used twice."""
    norm, linear = nn.LayerNorm(2).double(), nn.Linear(2, 2).double()
    leaves = (make(1, 2, 2, 2).requires_grad_(), *norm.parameters(), *linear.parameters())

    def run(x, *_parameters):
        return Evaluator()(lazy(x).then(norm, linear, F.silu, linear))

    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad], ids=["grad", "no_grad"])
def test_network_has_its_forward_derivative(context):
    """The reference is a difference quotient, which needs no derivative of any layer."""
    torch.manual_seed(0)
    network = MambaMIS(1, 1, (32, 32), variant="S", d_state=2).double()
    x, v = torch.randn(2, 1, 1, 32, 32, dtype=torch.float64)
    with context():
        _, tangent = jvp(network, (x,), (v,))
    with torch.no_grad():
        expected = (network(x + 1e-5 * v) - network(x - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-6)
    assert tangent.abs().max() > 1e-3


@needs_native
def test_torch_function_modes_see_operators():
    """Without gradients, native code is called directly, except under a mode that intercepts calls."""
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        s6_layer(X), pixelwise(X)
    assert {"nnunet_mamba_mis.native_s6.default", "nnunet_mamba_mis.native_pixelwise.default"} <= set(seen)


@needs_native
@pytest.mark.parametrize("operation", OPERATIONS)
def test_zero_tensor_without_memory_is_accepted(operation):
    function, _ = OPERATIONS[operation]
    zeros = torch._efficientzerotensor(X.shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(function(zeros), function(torch.zeros_like(X)))

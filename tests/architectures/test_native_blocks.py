"""Blocks as one native operation: values and gradients match those of the same layers in PyTorch."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.architectures.amffb import AMFFB, SCABFSS
from nnunet_mamba_mis.architectures.basic_blocks import BSSS
from nnunet_mamba_mis.architectures.convolutions import DepthwiseConv3x3, SpatialConv7x7
from nnunet_mamba_mis.architectures.scan_blocks import BFSS
from nnunet_mamba_mis.architectures.spectral_gate import SpectralGate
from nnunet_mamba_mis.ops import Evaluator, Resize, apply, channel_summary, lazy, pixel_summary
from nnunet_mamba_mis.ops import evaluator as evaluator_module
from nnunet_mamba_mis.ops import native_library as native
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
    """Fail if an expression is computed piece by piece."""

    def fail(*_):
        raise AssertionError("not computed as one operation")

    monkeypatch.setattr(evaluator_module.Evaluator, "_by_pieces", fail)


class Alone(nn.Module):
    """An expression of a single layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.evaluate = Evaluator()

    def forward(self, x):
        return self.evaluate(lazy(x).then(self.layer))


class Bridge(nn.Module):
    """The bridge on features of two sizes."""

    def __init__(self, size, channels):
        super().__init__()
        self.size = size
        self.bridge = AMFFB([channels, channels], d_state=5, width=8)

    def forward(self, x):
        levels = self.bridge([x, Resize(self.size)(x).contiguous()])
        return torch.cat([level.flatten() for level in levels])


class Summaries(nn.Module):
    """The channel and pixel summaries of the attention; with a zero convolution, all pixels have the same gate."""

    def __init__(self):
        super().__init__()
        self.conv = SpatialConv7x7()
        self.evaluate = Evaluator()

    def forward(self, x):
        features = lazy(x)
        return self.evaluate(apply(pixel_summary, features, features.then(channel_summary, self.conv)))


def random_module(make, dtype=torch.float64):
    """Return a module with random parameters instead of its initial ones."""
    torch.manual_seed(0)
    module = make().to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def results(module, x):
    """Return values and gradients, keyed by name."""
    x = x.detach().requires_grad_()
    return with_gradients({"y": module(x)}, {"x": x, **dict(module.named_parameters())})


def results_by_torch(module, x):
    """Return `results`, computed without native code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "available", bool)
        return results(module, x)


LAYERS = {
    "depthwise": lambda size, channels: Alone(DepthwiseConv3x3(channels)),
    "gate": lambda size, channels: Alone(SpectralGate(size, channels)),
    "bfss": lambda size, channels: BFSS(channels, d_state=5),
    "pooling": lambda size, channels: Alone(Resize((-(-size[0] // 2), -(-size[1] // 3)))),
    "interpolation": lambda size, channels: Alone(Resize((2 * size[0], 4 * size[1]))),
    "interpolation to odd sizes": lambda size, channels: Alone(Resize((size[0] + 2, size[1] + 5))),
    "attention": lambda size, channels: SCABFSS(channels, d_state=5),
    "bridge": lambda size, channels: Bridge((-(-size[0] // 2), -(-size[1] // 2)), channels),
    "block": lambda size, channels: BSSS(channels, size, d_state=5),
    "block without a gate": lambda size, channels: BSSS(channels, size, d_state=5, spectral_gate=False),
    "block of the papers' code": lambda size, channels: BSSS(channels, size, d_state=5, discretization="mamba"),
}


# LayerNorm of two channels magnifies errors where the channels are almost equal
CONDITION = {"attention": 10, "bridge": 10}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("size", "channels"),
    [((1, 1), 4), ((2, 3), 8), ((7, 5), 22), ((6, 12), 16), ((9, 16), 8), ((13, 22), 4)],
    ids=str,
)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_one_operation_agrees_with_torch(instruction_set, layer, size, channels, dtype, monkeypatch):
    use_instruction_set(instruction_set, monkeypatch)
    module = random_module(lambda: LAYERS[layer](size, channels), dtype)
    x = torch.randn(3, *size, channels, dtype=dtype)
    expected = results_by_torch(copy.deepcopy(module).double(), x.double())
    monkeypatch.setattr(evaluator_module.Evaluator, "_by_pieces", None)
    assert_same(results(module, x), expected, TOLERANCE[dtype] * CONDITION.get(layer, 1))


def test_whole_network_agrees_with_torch():
    net = random_module(lambda: MambaMIS(3, 2, (32, 64), d_state=4))
    x = torch.rand(2, 3, 32, 64, dtype=torch.float64)
    assert_same(results(net, x), results_by_torch(net, x), 1e-9)


@pytest.mark.parametrize("strides", ["channels first", "columns first", "part of the channels"])
def test_features_may_have_any_strides(strides, only_native):
    block = random_module(lambda: BSSS(8, (5, 6), d_state=3))
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    same = {
        "channels first": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "columns first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "part of the channels": torch.cat([x, x], dim=-1)[..., 8:],
    }[strides]
    assert torch.equal(block(same), block(x))


def test_values_without_gradients_have_the_same_bits(only_native):
    block, x = random_module(lambda: BSSS(8, (9, 6), d_state=3), torch.float32), torch.randn(2, 9, 6, 8)
    expected = block(x)
    with torch.no_grad():
        assert torch.equal(block(x), expected)


@pytest.mark.parametrize("layer", ["block", "attention", "bridge"])
def test_values_and_gradients_have_the_same_bits_on_any_number_of_threads(layer, threads, only_native):
    block, x = random_module(lambda: LAYERS[layer]((24, 21), 16), torch.float32), torch.randn(2, 24, 21, 16)
    several = []
    for count in (2, 3, 7):
        threads(count)
        several.append(results(block, x))
    assert_same_bits(several)


def test_threads_can_share_a_block(only_native):
    """Each call fills its own buffers, so that the threads of a server, for example, can share a block."""
    block, inputs = random_module(lambda: BSSS(8, (16, 16), d_state=4), torch.float32), torch.randn(4, 1, 16, 16, 8)
    with torch.no_grad():
        expected = [block(x) for x in inputs]
    wrong = []

    def work(x, y):
        with torch.no_grad():
            wrong.extend(i for i in range(50) if not torch.equal(block(x), y))

    workers = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("layer", ["block", "attention", "bridge"])
def test_second_derivatives_agree_with_torch(layer):
    block = random_module(lambda: LAYERS[layer]((3, 4), 4))
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def penalty():
        (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [x, *block.parameters()])

    actual = penalty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "available", bool)
        expected = penalty()
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("layer", ["block", "attention"])
def test_batched_gradients_are_those_of_single_ones(layer):
    block = random_module(lambda: LAYERS[layer]((3, 4), 8))
    x = torch.randn(1, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    y = block(x)
    directions = torch.randn(3, *y.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, x, directions, is_grads_batched=True, retain_graph=True)
    for direction, gradient in zip(directions, batched, strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(y, x, direction, retain_graph=True)[0])


@pytest.mark.parametrize("frozen", ["scan.scans.0.A_log", "spectral_gate.weight", "norms.1.bias"])
def test_frozen_parameters_do_not_change_other_gradients(frozen, only_native):
    block, x = random_module(lambda: BSSS(8, (4, 5), d_state=3)), torch.randn(1, 4, 5, 8, dtype=torch.float64)
    block(x).sum().backward()
    expected = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    block.get_parameter(frozen).requires_grad_(False)
    block(x).sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is None if name == frozen else torch.equal(parameter.grad, expected[name])


def change_weight(block):
    block.scan.scans[1].delta.weight = nn.Parameter(torch.randn(8, 8, dtype=torch.float64))


def change_gate(block):
    block.spectral_gate = random_module(lambda: SpectralGate((4, 6), 8))


def add_hook(block):
    block.scan.scans[0].register_forward_hook(lambda _module, _inputs, y: 2 * y)


def remove_bias(block):
    block.fusion.bias = None


def change_layout(block):
    block.depthwise.weight.data = block.depthwise.weight.data.flip(3).transpose(2, 3)


def replace_hooks(block):
    block.out._forward_hooks = OrderedDict({0: lambda _module, _inputs, y: 2 * y})


def change_eps(block):
    block.norms[0].eps = 0.5


def change_class(block):
    class Negative(nn.Linear):
        def forward(self, x):
            return -super().forward(x)

    block.projs[1].__class__ = Negative


def change_step(block):
    block.scan.fusion[2] = nn.ReLU()


CHANGES = [
    change_weight,
    change_gate,
    add_hook,
    remove_bias,
    change_layout,
    replace_hooks,
    change_eps,
    change_class,
    change_step,
]


@pytest.mark.parametrize("change", CHANGES)
def test_block_follows_changes_of_its_layers(change):
    block, x = random_module(lambda: BSSS(8, (4, 6), d_state=3)), torch.randn(2, 4, 6, 8, dtype=torch.float64)
    before = block(x)
    change(block)
    after = results(block, x)
    assert not torch.equal(after["y"], before)
    assert_same(after, results_by_torch(block, x), 1e-11)


def test_equal_maxima_share_their_gradient(monkeypatch):
    module = random_module(Summaries)
    nn.init.zeros_(module.conv.weight)
    x = torch.randint(3, (2, 5, 6, 8), dtype=torch.float64)
    expected = results_by_torch(module, x)
    monkeypatch.setattr(evaluator_module.Evaluator, "_by_pieces", None)
    assert_same(results(module, x), expected, 1e-12)


@pytest.mark.parametrize("layer", ["spatial_conv", "channel_in", "spatial_scan"])
def test_attention_with_a_hook_calls_the_layer(layer):
    attention, x = random_module(lambda: SCABFSS(16, d_state=3)), torch.randn(2, 4, 5, 16, dtype=torch.float64)
    before = attention(x)
    attention.get_submodule(layer).register_forward_hook(lambda _module, _inputs, y: 2 * y)
    after = results(attention, x)
    assert not torch.equal(after["y"], before)
    assert_same(after, results_by_torch(attention, x), 1e-11)


def test_blocks_follow_hooks_for_all_modules():
    block, x = random_module(lambda: BSSS(8, (4, 6), d_state=3)), torch.randn(2, 4, 6, 8, dtype=torch.float64)
    before = block(x)
    seen = []
    handle = register_module_forward_hook(lambda module, _inputs, _y: seen.append(module))
    after = block(x)
    handle.remove()
    assert block.out in seen
    assert_same({"y": after}, {"y": before}, 1e-11)


def test_blocks_that_have_run_are_freed_without_the_garbage_collector():
    block = BSSS(8, (4, 6), d_state=3)
    block(torch.randn(2, 4, 6, 8))
    freed = weakref.ref(block)
    gc.disable()
    del block
    gc.enable()
    assert freed() is None


def test_features_of_the_wrong_size_fail_as_in_torch():
    block = random_module(lambda: BSSS(8, (4, 4), d_state=3))
    with pytest.raises(RuntimeError):
        block(torch.randn(1, 4, 5, 8, dtype=torch.float64))

"""U-Mamba on nnU-Net's residual U-Net, as the trainers build it from plans."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_mamba_mis.architectures.mamba_block import Mamba
from nnunet_mamba_mis.architectures.umamba import MambaLayer, UMamba
from nnunet_mamba_mis.ops import selective_scan_reference
from nnunet_mamba_mis.ops.causal_conv import causal_conv_silu
from support.umamba import PLAIN, TO_IMPORT, make_umamba

SMALL = PLAIN | {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "kernel_sizes": [[3, 3]] * 3,
    "strides": [[1, 1], [2, 2], [2, 2]],
    "n_conv_per_stage": [2] * 3,
    "n_conv_per_stage_decoder": [2] * 2,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.feature("Controls", "U-Mamba's parameters, counted by hand and as published")
@pytest.mark.parametrize("channels", [8, 20, 512])
def test_mamba_layer_has_as_many_parameters_as_its_equations(channels):
    inner, states, rank, taps = 2 * channels, 16, math.ceil(channels / 16), 4
    mamba = (
        channels * 2 * inner  # features and gate
        + inner * taps + inner
        + inner * (rank + 2 * states)  # low-rank Δ, B and C
        + rank * inner + inner
        + inner * states + inner  # A and D
        + inner * channels
    )  # fmt: skip
    assert count(Mamba(channels)) == mamba
    assert count(MambaLayer(channels)) == mamba + 2 * channels


@pytest.mark.feature("Controls", "U-Mamba's parameters, counted by hand and as published")
@pytest.mark.parametrize(
    ("place", "layers", "millions"),
    [("bottleneck", [512], 63), ("encoder", [32, 64, 128, 256, 512, 512, 512], 67)],
    ids=["Bot", "Enc"],
)
def test_parameter_counts_match_the_published_ones(place, layers, millions):
    with torch.device("meta"):
        plain = get_network_from_plans("dynamic_network_architectures.architectures.unet.PlainConvUNet",
                                       PLAIN, TO_IMPORT, 1, 14, deep_supervision=True)  # fmt: skip
        network = make_umamba(place, PLAIN, classes=14, deep_supervision=True)
    kernels = [(1, 32)] + [(32, 32)] * 4 + [(32, 64)] + [(64, 64)] * 3 + [(64, 128)] + [(128, 128)] * 3
    kernels += [(128, 256)] + [(256, 256)] * 3 + [(256, 512)] + [(512, 512)] * 11
    # decoder: two blocks of two convolutions per stage, the first convolution on twice the channels
    for c in (512, 512, 256, 128, 64, 32):
        kernels += [(2 * c, c), (c, c), (c, c), (c, c)]
    conv3x3 = sum(i * o * 9 + 3 * o for i, o in kernels)  # 3: the bias, and weight and bias of the norm
    # if channels change, the skip has a 1 × 1 convolution without bias, and a norm
    skips = [(32, 64), (64, 128), (128, 256), (256, 512), *((2 * c, c) for c in (512, 512, 256, 128, 64, 32))]
    conv1x1 = sum(i * o + 2 * o for i, o in skips)
    up = [(512, 512), (512, 512), (512, 256), (256, 128), (128, 64), (64, 32)]
    transposed = sum(i * o * 4 + o for i, o in up)
    heads = sum(c * 14 + 14 for c in (512, 512, 256, 128, 64, 32))
    mamba = sum(count(MambaLayer(c)) for c in layers)
    assert count(network) == conv3x3 + conv1x1 + transposed + heads + mamba
    assert (round(count(network) / 1e6), round(count(plain) / 1e6)) == (millions, 33)


@pytest.mark.parametrize("place", ["bottleneck", "encoder"])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_every_parameter_has_a_gradient(place, deep_supervision):
    network = make_umamba(place, SMALL, channels=3, deep_supervision=deep_supervision)
    with torch.no_grad():
        for parameter in network.parameters():  # residual branches start with a weight of 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    logits = network(torch.randn(2, 3, 24, 16))
    logits = logits if deep_supervision else [logits]
    assert [tuple(y.shape) for y in logits] == [(2, 2, 24, 16), (2, 2, 12, 8)][: len(logits)]
    sum(y.square().mean() for y in logits).backward()
    without = {
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    # nnU-Net's decoder has the lower head even without deep supervision, so weights load either way
    assert without == (set() if deep_supervision else {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"})


def test_plans_of_residual_unets_set_the_number_of_blocks():
    arguments = {name: value for name, value in SMALL.items() if name != "n_conv_per_stage"}
    network = make_umamba("encoder", arguments | {"n_blocks_per_stage": [1, 3, 2]})
    assert [len(stage.blocks) for stage in network.encoder.stages] == [1, 3, 2]


def test_plans_for_another_network_are_refused_in_one_message():
    with pytest.raises(SystemExit, match="nnUNetTrainerUMambaBot takes its stages from plans for nnU-Net's U-Nets"):
        make_umamba("bottleneck", {"variant": "B"})


def mamba_reference(m: Mamba, x: torch.Tensor) -> torch.Tensor:
    """Compute the block's equations for one sequence (L, channels), with the convolution position by position."""
    inner, taps = m.conv1d.weight.shape[0], m.conv1d.weight.shape[-1]
    features, gate = (x @ m.in_proj.weight.T).split(inner, dim=1)
    padded = torch.cat([features.new_zeros(taps - 1, inner), features])
    convolved = torch.stack(
        [sum(m.conv1d.weight[:, 0, k] * padded[t + k] for k in range(taps)) + m.conv1d.bias for t in range(len(x))]
    )
    u = convolved * torch.sigmoid(convolved)
    low_rank, B, C = (u @ m.x_proj.weight.T).split([m.dt_rank, m.d_state, m.d_state], dim=1)
    delta = F.softplus(low_rank @ m.dt_proj.weight.T + m.dt_proj.bias)
    y = selective_scan_reference(u.T[None], delta.T[None], -m.A_log.exp(), B.T[None], C.T[None])[0].T + m.D * u
    return (y * gate * torch.sigmoid(gate)) @ m.out_proj.weight.T


@pytest.mark.feature("Controls", "its Mamba block matches its equations, in values and gradients")
def test_mamba_matches_its_equations_in_values_and_gradients():
    mamba = Mamba(6, d_state=3).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *mamba.parameters()]
    ours = mamba(x)
    theirs = torch.stack([mamba_reference(mamba, sequence) for sequence in x])
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    for actual, expected in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_first_step_sizes_are_between_a_thousandth_and_a_tenth():
    steps = F.softplus(Mamba(64).dt_proj.bias)
    assert 1e-3 <= steps.min() < 3e-3 and 4e-2 < steps.max() <= 0.1


def test_no_position_sees_a_later_one():
    x, weight, bias = torch.randn(1, 3, 9), torch.randn(3, 1, 4), torch.randn(3)
    changed = x.clone()
    changed[..., 5] += 1
    before, after = (causal_conv_silu(values, weight, bias) for values in (x, changed))
    different = (before != after).any(dim=1)[0]
    assert different.tolist() == [False] * 5 + [True] * 4


@pytest.mark.feature("Controls", "it stays in float32 under autocast")
def test_mamba_stays_in_float32_under_autocast():
    layer, x = MambaLayer(8), torch.randn(1, 8, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    torch.testing.assert_close(y, layer(x.bfloat16().float()))
    assert y.dtype == torch.float32


def test_unknown_place_is_named():
    with pytest.raises(ValueError, match="place 'decoder' is not one of 'bottleneck', 'encoder'"):
        UMamba(1, 2, place="decoder")

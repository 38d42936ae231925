"""Spectral gates resampled from one patch size to another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS, gates_to_resample, resample_spectral_gates
from nnunet_mamba_mis.architectures.gate_resampling import resample_bias, resample_weight
from nnunet_mamba_mis.architectures.spectral_gate import SpectralGate

CHANNELS = 3
SIZES = [((16, 16), (24, 40)), ((24, 40), (16, 16)), ((8, 24), (6, 32)), ((8, 8), (9, 11)), ((9, 11), (8, 8))]
SIZE_IDS = [f"{a}x{b} to {c}x{d}" for (a, b), (c, d) in SIZES]


class Gate(nn.Module):
    """One gate in double precision, with random weights."""

    def __init__(self, size):
        super().__init__()
        self.gate = SpectralGate(size, CHANNELS).double()
        nn.init.normal_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x):
        return self.gate(x)

    def set_filter(self, taps):
        """Make the gate convolve with (H, W) taps around the origin."""
        height, width = self.gate.size
        weight = torch.fft.rfft2(taps)[..., None].expand(height, width // 2 + 1, CHANNELS)
        self.gate.weight.data = torch.view_as_real(weight).clone()
        return self

    def set_pattern(self, image):
        """Make the gate add (H, W) values."""
        spectrum = torch.fft.rfft2(image, norm="ortho")[..., None].expand(-1, -1, CHANNELS)
        self.gate.bias.data = torch.view_as_real(spectrum).clone()
        return self

    def at(self, size):
        """Return the same gate, resampled to a size."""
        other = Gate(size)
        other.gate.weight.data = resample_weight(self.gate.weight, self.gate.size, size)
        other.gate.bias.data = resample_bias(self.gate.bias, self.gate.size, size)
        return other


def short_filter(size):
    """Return 5 × 5 taps around the origin, without symmetry."""
    taps = torch.zeros(size, dtype=torch.float64)
    for row in range(-2, 3):
        for column in range(-2, 3):
            taps[row, column] = 1 + 0.3 * row - 0.2 * column + 0.1 * row * column
    return taps


def features(*size):
    return torch.randn(2, *size, CHANNELS, dtype=torch.float64)


@pytest.mark.feature("Fine-tuning", "a filter acts alike on the same content at another size")
@pytest.mark.parametrize(("old", "new"), SIZES, ids=SIZE_IDS)
def test_smooth_gate_filters_the_same_content_alike_at_another_size(old, new):
    gate = Gate(old).set_filter(short_filter(old))
    image = features(40, 48)
    before = gate(image[:, : old[0], : old[1]])
    after = gate.at(new)(image[:, : new[0], : new[1]])
    inside = (slice(None), slice(2, min(old[0], new[0]) - 2), slice(2, min(old[1], new[1]) - 2))
    torch.testing.assert_close(after[inside], before[inside])


@pytest.mark.feature("Fine-tuning", "a filter acts alike on the same content at another size")
def test_band_limited_gate_keeps_its_band():
    """A sharp low-pass at 1/8 cycle per pixel passes a wave of 1/16 at every size, and a wave of 3/16 at no size."""
    rows, columns = torch.fft.fftfreq(32).abs(), torch.fft.rfftfreq(32)
    gate = Gate((32, 32))
    passes = ((rows[:, None] <= 1 / 8) & (columns <= 1 / 8)).double()
    gate.gate.weight.data = torch.stack([passes, torch.zeros_like(passes)], -1)[:, :, None].repeat(1, 1, CHANNELS, 1)
    for size in (16, 32, 48, 64):
        wave = torch.cos(2 * torch.pi * torch.arange(size, dtype=torch.float64) / 16)
        fast = torch.cos(2 * torch.pi * 3 * torch.arange(size, dtype=torch.float64) / 16)
        resampled = gate.at((size, size))
        x = (wave[:, None] + fast)[None, :, :, None].repeat(1, 1, 1, CHANNELS)
        torch.testing.assert_close(resampled(x), wave[:, None, None].expand_as(x[0])[None])


@pytest.mark.feature("Fine-tuning", "a filter acts alike on the same content at another size")
@pytest.mark.parametrize("repeats", [(2, 2), (3, 1), (1, 4)], ids=str)
def test_any_gate_filters_tiles_of_an_image_as_it_filters_the_image(repeats):
    gate, image = Gate((8, 12)), features(8, 12)
    tiles = (1, *repeats, 1)
    larger = gate.at((8 * repeats[0], 12 * repeats[1]))
    torch.testing.assert_close(larger(image.repeat(tiles)), gate(image).repeat(tiles))
    # and a gate of the larger grid filters the image as it filters the tiles
    nn.init.normal_(larger.gate.weight)
    torch.testing.assert_close(larger.at((8, 12))(image).repeat(tiles), larger(image.repeat(tiles)))


@pytest.mark.feature("Fine-tuning", "a filter acts alike on the same content at another size")
@pytest.mark.parametrize(("old", "new"), SIZES, ids=SIZE_IDS)
def test_gate_that_changes_nothing_still_changes_nothing(old, new):
    identity = torch.zeros(old, dtype=torch.float64)
    identity[0, 0] = 1
    x = features(*new)
    torch.testing.assert_close(Gate(old).set_filter(identity).at(new)(x), x)


@pytest.mark.feature("Fine-tuning", "resampling to a larger patch and back is exact")
@pytest.mark.parametrize("larger", [(8, 12), (9, 13), (15, 24), (16, 12), (40, 41)], ids=str)
def test_resampling_to_a_larger_grid_and_back_restores_the_gate(larger):
    gate, x = Gate((8, 12)).set_pattern(torch.randn(8, 12, dtype=torch.float64)), features(8, 12)
    torch.testing.assert_close(gate.at(larger).at((8, 12))(x), gate(x))


@pytest.mark.feature("Fine-tuning", "the image that a gate adds is resized with the patch")
@pytest.mark.parametrize(("old", "new"), SIZES, ids=SIZE_IDS)
def test_constant_that_a_gate_adds_stays_that_constant(old, new):
    gate = Gate(old).set_pattern(torch.full(old, 1.5, dtype=torch.float64)).at(new)
    zeros = torch.zeros(1, *new, CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(gate(zeros), torch.full_like(zeros, 1.5))


@pytest.mark.feature("Fine-tuning", "the image that a gate adds is resized with the patch")
def test_pattern_that_a_gate_adds_is_resized_with_the_patch():
    def hill(height, width):
        row, column = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
        return torch.cos(2 * torch.pi * row / height)[:, None] + torch.sin(4 * torch.pi * column / width)

    gate = Gate((16, 24)).set_pattern(hill(16, 24))
    for size in ((32, 40), (8, 12)):
        zeros = torch.zeros(1, *size, CHANNELS, dtype=torch.float64)
        torch.testing.assert_close(gate.at(size)(zeros)[0, ..., 0], hill(*size))


def network(*patch_size, variant="S", stem="patch"):
    return MambaMIS(1, 2, patch_size, variant=variant, d_state=4, stem=stem)


def test_weights_of_the_same_grid_are_the_same_tensors():
    weights = network(64, 64).state_dict()
    other = network(60, 50)  # padded to the same grid
    assert gates_to_resample(weights, other) == {}
    assert all(tensor is weights[name] for name, tensor in resample_spectral_gates(weights, other).items())


@pytest.mark.feature("Fine-tuning", "all gates of a network are resampled, and nothing else")
@pytest.mark.parametrize(
    ("variant", "stem", "finest"),
    [("S", "patch", ((64, 64), (96, 128))), ("S", "conv", ((16, 16), (24, 32))), ("H", "conv", ((16, 16), (24, 32)))],
)
def test_every_gate_of_a_network_is_resampled_and_nothing_else(variant, stem, finest):
    small, large = network(64, 64, variant=variant, stem=stem), network(96, 128, variant=variant, stem=stem)
    weights = small.state_dict()
    resampled = resample_spectral_gates(weights, large)
    large.load_state_dict(resampled)
    gates = gates_to_resample(weights, large)
    assert set(gates) == {name for name, module in large.named_modules() if isinstance(module, SpectralGate)}
    coarsest = next(size for name, size in gates.items() if name.startswith("encoder.stages.3."))
    assert coarsest == ((2, 2), (3, 4))
    assert gates[list(gates)[-1]] == finest
    others = {name for name in weights if name.rpartition(".")[0] not in gates}
    assert all(resampled[name] is weights[name] for name in others)


@pytest.mark.feature("Fine-tuning", "all gates of a network are resampled, and nothing else")
def test_grids_with_equally_many_stored_columns_are_told_apart():
    # grids of 2 and of 3 columns both store 2 columns of frequencies
    gates = gates_to_resample(network(64, 64).state_dict(), network(64, 96))
    assert gates["encoder.stages.3.blocks.0.spectral_gate"] == ((2, 2), (2, 3))


def test_gates_with_other_channels_are_left_for_loading_to_refuse():
    weights = network(64, 64).state_dict()
    name = "encoder.stages.0.blocks.0.spectral_gate"
    weights[f"{name}.weight"] = weights[f"{name}.weight"][:, :, :-1]
    large = network(96, 96)
    assert name not in gates_to_resample(weights, large)
    with pytest.raises(RuntimeError, match=name):
        large.load_state_dict(resample_spectral_gates(weights, large))


@pytest.mark.feature("Fine-tuning", "loading without resampling stays strict")
def test_loading_another_patch_size_without_resampling_is_an_error():
    with pytest.raises(RuntimeError, match="size mismatch for encoder"):
        network(96, 96).load_state_dict(network(64, 64).state_dict())

"""Muon for convolutions: its direction, its step, which parameters it trains, and its place in trainers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.trainers.muon import ITERATIONS, MOMENTUM, POLYNOMIAL, MuonAdamW, dense_kernels, orthogonalized
from support.trainer_in_process import FEW_WEIGHTS, make_trainer


def reference(x: torch.Tensor) -> torch.Tensor:
    """Return the result of Newton-Schulz iterations on the matrix itself, in float64."""
    x = x.double() / x.double().norm()
    linear, cubic, quintic = POLYNOMIAL
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = linear * x + (cubic * square + quintic * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(16, 27), (40, 40), (64, 24), (1, 5)], ids=str)
def test_direction_has_the_singular_vectors_of_the_momentum_and_values_near_one(shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    result = orthogonalized(x)
    for matrix, found in zip(x, result, strict=True):
        torch.testing.assert_close(found.double(), reference(matrix), rtol=1e-4, atol=1e-4)
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        found_values = (left.T @ found.double() @ right.T).diagonal()
        clear = values > values.max() / 100
        assert found_values[clear].min() > 0.6 and found_values.max() < 1.25


def test_direction_of_a_zero_gradient_is_zero():
    assert torch.equal(orthogonalized(torch.zeros(2, 4, 9)), torch.zeros(2, 4, 9))


@pytest.mark.feature("Recipe", "`muon`")
def test_steps_follow_muon_for_kernels_and_adamw_for_the_rest():
    torch.manual_seed(0)
    kernel, kernel_of_same_shape, bias = (
        nn.Parameter(torch.randn(*shape)) for shape in ((8, 4, 3, 3), (8, 4, 3, 3), (8,))
    )
    expected = [kernel.detach().double(), kernel_of_same_shape.detach().double()]
    of_adamw = nn.Parameter(bias.detach().clone())
    optimizer = MuonAdamW(
        [{"params": [bias]}, {"params": [kernel, kernel_of_same_shape], "weight_decay": 0.1, "muon": True}], lr=0.02
    )
    adamw = torch.optim.AdamW([of_adamw], lr=0.02)
    momenta = [torch.zeros(8, 36, dtype=torch.float64) for _ in expected]
    for _ in range(3):
        of_adamw.grad = bias.grad = torch.randn(8)
        for number, parameter in enumerate((kernel, kernel_of_same_shape)):
            parameter.grad = torch.randn(8, 4, 3, 3)
            gradient = parameter.grad.double().flatten(1)
            momenta[number] = MOMENTUM * momenta[number] + gradient
            direction = reference(gradient + MOMENTUM * momenta[number]).view(8, 4, 3, 3)
            expected[number] = (1 - 0.02 * 0.1) * expected[number] - 0.02 * 0.2 * 6 * direction
        optimizer.step()
        adamw.step()
    torch.testing.assert_close([kernel.double(), kernel_of_same_shape.double()], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, of_adamw)
    assert len(optimizer.param_groups) == 2


def test_direction_of_a_tiny_gradient_is_finite():
    assert orthogonalized(torch.full((1, 4, 9), 1e-25)).isfinite().all()


def step_with_random_gradients(optimizer: MuonAdamW, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.feature("Recipe", "`muon`")
def test_optimizer_continues_from_its_state():
    def make() -> MuonAdamW:
        return MuonAdamW(
            [
                {"params": [nn.Parameter(torch.ones(3))]},
                {"params": [nn.Parameter(torch.ones(4, 3, 3, 3))], "muon": True},
            ],
            lr=0.1,
        )

    uninterrupted, resumed = make(), make()
    step_with_random_gradients(uninterrupted, 1)
    resumed.load_state_dict(copy.deepcopy(uninterrupted.state_dict()))
    for group, other in zip(resumed.param_groups, uninterrupted.param_groups, strict=True):
        for parameter, value in zip(group["params"], other["params"], strict=True):
            parameter.data.copy_(value)
    for optimizer in (uninterrupted, resumed):
        step_with_random_gradients(optimizer, 2)
    for group, other in zip(resumed.param_groups, uninterrupted.param_groups, strict=True):
        assert group["muon"] == other["muon"]
        assert all(torch.equal(a, b) for a, b in zip(group["params"], other["params"], strict=True))


def test_gradient_scaler_skips_a_step_that_is_not_finite():
    kernel, bias = nn.Parameter(torch.ones(4, 3, 3, 3)), nn.Parameter(torch.ones(4))
    optimizer = MuonAdamW([{"params": [bias]}, {"params": [kernel], "muon": True}], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(kernel.sum() + (bias * torch.inf).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(kernel, torch.ones(4, 3, 3, 3)) and torch.equal(bias, torch.ones(4))


def test_parameter_without_a_gradient_stays():
    kernel = nn.Parameter(torch.ones(4, 4, 3, 3))
    MuonAdamW([{"params": [kernel], "muon": True}], lr=1.0).step()
    assert torch.equal(kernel, torch.ones(4, 4, 3, 3))


def test_muon_trains_the_kernels_that_mix_channels():
    network = MambaMIS(3, 2, (32, 32), variant="H", stem="conv")
    kernels = {id(kernel) for kernel in dense_kernels(network)}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in kernels}
    expected = {
        name
        for name, parameter in network.named_parameters()
        if parameter.shape[2:] == (3, 3) and not any(part in name for part in ("depthwise", "smooth"))
    }
    assert names == expected and len(names) == 16 + 4 + 3  # convolutions of 8 stages, stem, upsampling
    assert "decoder.seg_layers.0.weight" not in names


def test_muon_trains_all_kernels_of_a_u_net_but_its_segmentation_layers():
    network = PlainConvUNet(1, 3, (4, 8, 8), nn.Conv3d, 3, (1, 2, 2), 1, 2, 1, deep_supervision=True)
    kernels = dense_kernels(network)
    assert len(kernels) == 3 - 1 + 2 + 2  # encoder, without the first, which has one channel in; transposed; decoder
    assert not {id(kernel) for kernel in kernels} & {id(layer.weight) for layer in network.decoder.seg_layers}


class WithMuon(nnUNetTrainerMambaMIS):
    """Mamba-MIS with Muon; a test gives a trainer without Muon the same name, and so the same results folder."""

    architecture: ClassVar = FEW_WEIGHTS
    muon = True


@pytest.mark.feature("Recipe", "`muon`")
def test_every_parameter_of_a_trainer_is_in_one_group(in_this_process):
    trainer = make_trainer(WithMuon, in_this_process)
    trainer.initialize()
    decayed, exempt, kernels = trainer.optimizer.param_groups
    assert [group["muon"] for group in (decayed, exempt, kernels)] == [False, False, True]
    assert [id(kernel) for kernel in kernels["params"]] == [id(kernel) for kernel in dense_kernels(trainer.network)]
    members = [id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in trainer.network.parameters())


@pytest.mark.parametrize("muon", [False, True])
def test_checkpoint_of_a_run_with_the_other_optimizer_is_refused(in_this_process, muon):
    before = make_trainer(type("WithMuon", (WithMuon,), {"muon": not muon}), in_this_process)
    before.initialize()
    path = Path(before.output_folder) / "checkpoint_latest.pth"
    before.save_checkpoint(str(path))
    del before
    continued = make_trainer(type("WithMuon", (WithMuon,), {"muon": muon}), in_this_process, continued=True)
    with pytest.raises(SystemExit, match=r"checkpoint_latest.pth does not fit WithMuon: .*parameter group"):
        continued.load_checkpoint(str(path))

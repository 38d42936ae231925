"""Training passes that replay a CUDA graph match passes without a graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.trainers.cuda_graph import replay_training_passes

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
pytestmark = pytest.mark.feature("Processes", "one GPU: training replays a CUDA graph (marked `gpu`)")


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.skipif(torch.cuda.is_available(), reason="capture fails only without a CUDA device")
def test_network_that_cannot_be_captured_stays_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    image = torch.rand(2, 3, 8, 8)
    expected = copy.deepcopy(network)(image)
    with pytest.raises(RuntimeError):
        replay_training_passes(network, image)
    assert network[1].num_batches_tracked == 0 and all(p.grad is None for p in network.parameters())
    torch.testing.assert_close(network(image), expected)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize(
    "options", [{}, {"stem": "conv", "variant": "H"}, {"block": "cnn"}, {"block": "nossm"}], ids=str
)
def test_replayed_training_steps_equal_computed_ones(options):
    torch.manual_seed(0)
    network = MambaMIS(3, 2, (64, 64), deep_supervision=True, **options).cuda()
    replaying = copy.deepcopy(network)
    images = torch.rand(4, 2, 3, 64, 64, device="cuda")
    replay_training_passes(replaying, images[0])
    for image in images:
        losses = [training_step(each, image) for each in (network, replaying)]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
    for expected, actual in zip(network.parameters(), replaying.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-4)
    # evaluation is not replayed, and takes any batch size
    with torch.no_grad():
        expected, actual = (each.eval()(images[0, :1])[0] for each in (network, replaying))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)


def training_step(network: nn.Module, image: Tensor) -> Tensor:
    """Take a step of gradient descent towards an image's first two channels, and return the loss."""
    network.zero_grad(set_to_none=True)
    with torch.autocast("cuda"):
        loss = (network(image)[0].float() - image[:, :2]).square().mean()
    (1024 * loss).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 / 1024 * parameter.grad
    return loss.detach()

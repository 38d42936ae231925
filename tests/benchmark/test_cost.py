"""Operations match hand counts with every backend; memory and time are measured as nnU-Net trains and predicts."""

from __future__ import annotations

import json

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_mamba_mis.architectures import VARIANTS, MambaMIS
from nnunet_mamba_mis.architectures.basic_blocks import BSSS, ViTBlock
from nnunet_mamba_mis.architectures.convolutions import DepthwiseConv3x3
from nnunet_mamba_mis.architectures.mamba_mis import Variant
from nnunet_mamba_mis.architectures.spectral_gate import SpectralGate
from nnunet_mamba_mis.architectures.umamba import MambaLayer
from nnunet_mamba_mis.benchmark.cost.flops import FORMULAS, count_flops
from nnunet_mamba_mis.benchmark.cost.measurement import measure_cost
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.ops import available_backends, selective_scan
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.utils.errors import UserError
from support.paths import REPOSITORY
from support.scans import use_backend
from support.small_dataset import NUMBER, SIZE, discs
from support.umamba import PLAIN, TO_IMPORT, make_umamba


class ChannelsLast(nn.Module):
    """A block with its input permuted to (batch, H, W, channels)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x.permute(0, 2, 3, 1))


def counted_while_running(run) -> int:
    """Return the number of operations counted during an actual run, instead of from shapes alone."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run()
    return counter.get_total_flops()


H, W, C, N = 8, 4, 12, 32
PIXELS = H * W
# log2 of 32 pixels is 5; one side of the transforms is real, which halves the operations
TRANSFORM = 5 * C * PIXELS * 5 // 2
SPECTRAL_GATE = 2 * TRANSFORM + 8 * C * H * (W // 2 + 1)
S6 = 2 * PIXELS * C * (C + 2 * N) + 9 * PIXELS * C * N
DEPTHWISE = 2 * PIXELS * C * 9
HAND_COUNTS = {
    "depthwise convolution": (lambda: DepthwiseConv3x3(C), DEPTHWISE),
    "spectral gate": (lambda: SpectralGate((H, W), C), SPECTRAL_GATE),
    "BSSS": (
        lambda: BSSS(C, (H, W)),
        2 * PIXELS * 3 * (C // 3 * C)  # a projection for each third of the channels
        + DEPTHWISE
        + 2 * S6
        + 2 * PIXELS * (2 * C * C + C * C)  # fusion of two scans
        + SPECTRAL_GATE
        + 2 * PIXELS * (2 * C * C + C * C),  # fusion with the spectral part, and the last layer
    ),
    "attention": (
        lambda: ViTBlock(C, (H, W)),
        2 * PIXELS * (3 * C * C + C * C + 8 * C * C)  # queries, keys and values; their projection; MLP
        + 2 * 2 * PIXELS * PIXELS * C,  # attention scores, and the weighted sum
    ),
}


@pytest.mark.feature("Controls", "operations match hand counts, with every backend")
@pytest.mark.parametrize("name", HAND_COUNTS)
def test_operations_of_a_block_match_a_hand_count(name):
    build, expected = HAND_COUNTS[name]
    assert count_flops(lambda: ChannelsLast(build()), (1, C, H, W)) == expected


@pytest.mark.feature("Controls", "operations match hand counts, with every backend")
def test_operations_of_a_mamba_layer_match_a_hand_count():
    inner, states, rank = 2 * C, 16, 1
    expected = PIXELS * (
        2 * C * 2 * inner
        + 2 * inner * 4
        + 2 * inner * (rank + 2 * states)
        + 2 * rank * inner
        + 9 * inner * states
        + 2 * inner * C
    )
    assert count_flops(lambda: MambaLayer(C), (1, C, H, W)) == expected


@pytest.mark.feature("Controls", "operations match hand counts, with every backend")
def test_operations_of_a_unet_match_a_hand_count():
    def build():
        return PlainConvUNet(3, 2, [4, 8], nn.Conv2d, 3, [1, 2], 1, 2, 1)

    encoder = 2 * PIXELS * 9 * 3 * 4 + 2 * (PIXELS // 4) * 9 * 4 * 8
    decoder = 2 * (PIXELS // 4) * 8 * 4 * 4 + 2 * PIXELS * 9 * 8 * 4 + 2 * PIXELS * 4 * 2
    assert count_flops(build, (1, 3, H, W)) == encoder + decoder


@pytest.mark.feature("Controls", "operations match hand counts, with every backend")
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("backend", sorted({"cpp", "torch"} & set(available_backends())))
def test_a_scan_has_nine_operations_per_state_with_every_backend(backend, gradients):
    u, delta = torch.rand(2, 6, 35), torch.rand(2, 6, 35)
    B, C = torch.rand(2, 4, 35), torch.rand(2, 4, 35)
    A = -torch.rand(6, 4, requires_grad=gradients)
    assert counted_while_running(lambda: selective_scan(u, delta, A, B, C, backend=backend)) == 9 * 2 * 6 * 35 * 4


@pytest.mark.feature("Controls", "operations match hand counts, with every backend")
@pytest.mark.parametrize(
    "arguments",
    [{}, {"block": "nossm"}, {"block": "vit"}, {"block": "cnn"}, {"scan": "ss2d"}, {"stem": "conv", "variant": "H"}],
    ids=str,
)
def test_counted_operations_match_a_run_with_and_without_native_code(arguments, monkeypatch):
    monkeypatch.setitem(VARIANTS, "S", Variant((1,) * 4, (1,) * 5))

    def build():
        return MambaMIS(3, 2, (32, 64), **({"variant": "S"} | arguments)).eval()

    counted = count_flops(build, (1, 3, 32, 64))
    network, image = build(), torch.rand(1, 3, 32, 64)
    assert counted_while_running(lambda: network(image)) == counted
    use_backend("torch", monkeypatch)
    monkeypatch.setattr(native, "available", lambda: False)
    assert counted_while_running(lambda: network(image)) == counted


@pytest.mark.feature("Controls", "operations match hand counts, with every backend")
def test_operations_grow_with_pixels_except_the_logarithm_of_transforms():
    small, large = (count_flops(lambda s=s: MambaMIS(3, 2, (s, s), variant="S"), (1, 3, s, s)) for s in (128, 256))
    assert 4 < large / small < 4.1


def documented() -> dict[str, tuple[str, str]]:
    """Return the parameters and operations in the documentation's table."""
    text = (REPOSITORY / "documentation" / "reference" / "cost.md").read_text()
    table = text.split("| network | parameters, millions | FLOPs, billions |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.strip().splitlines()[1:]]
    return {name: (parameters, flops) for name, parameters, flops in rows}


NETWORKS = {
    "nnU-Net": lambda: get_network_from_plans(f"{PlainConvUNet.__module__}.PlainConvUNet", PLAIN, TO_IMPORT, 3, 2),
    "U-Mamba_Bot": lambda: make_umamba("bottleneck", PLAIN, 3),
    "U-Mamba_Enc": lambda: make_umamba("encoder", PLAIN, 3),
    "Mamba-MIS S": lambda: MambaMIS(3, 2, (256, 256), variant="S"),
    "Mamba-MIS B": lambda: MambaMIS(3, 2, (256, 256)),
    "Mamba-MIS L": lambda: MambaMIS(3, 2, (256, 256), variant="L"),
    "Mamba-MIS B `_noSSM`": lambda: MambaMIS(3, 2, (256, 256), block="nossm"),
    "Mamba-MIS `_conv`": lambda: MambaMIS(3, 2, (256, 256), variant="H", stem="conv"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_documented_costs_match_the_count(name):
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in NETWORKS[name]().parameters()) / 1e6
    flops = count_flops(NETWORKS[name], (1, 3, 256, 256)) / 1e9
    assert documented()[name] == (f"{parameters:.1f}", f"{flops:.{1 if flops > 10 else 2}f}")


@pytest.mark.feature("Controls", "memory and time of a model, measured as nnU-Net runs it")
@pytest.mark.slow
def test_cost_of_a_model_is_measured_as_nnunet_runs_it(nnunet, monkeypatch, tmp_path):
    dataset = discs(nnunet)
    nnunet.set_here(monkeypatch, nnUNet_results=str(tmp_path))
    cost = measure_cost(NUMBER, Model("nnUNetTrainer"))
    plans = json.loads((nnunet.preprocessed / dataset.name / "nnUNetPlans.json").read_text())["configurations"]["2d"]
    patch = plans["patch_size"]

    def build():
        return get_network_from_plans(*plans["architecture"].values(), 1, 2, deep_supervision=False)

    assert cost["parameters"] == sum(parameter.numel() for parameter in build().parameters())
    assert cost["flops"] == count_flops(build, (1, 1, *patch))
    assert (cost["flops_input"], cost["batch_size"]) == ([1, *patch], plans["batch_size"])
    assert cost["image_shape"] == [1, *SIZE]
    assert 16 * cost["parameters"] < cost["training_bytes"] < 4e9
    assert 0 < cost["inference_seconds"] < 60 and "thread" in cost["hardware"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.feature("Controls", "memory and time of a model, measured as nnU-Net runs it")
def test_a_cost_that_cannot_be_measured_gives_one_message(nnunet, monkeypatch):
    discs(nnunet)
    nnunet.set_here(monkeypatch)
    with pytest.raises(UserError, match="nnUNetTrainerMambaMIS__nnUNetPlans__4d on dataset 41"):
        measure_cost(NUMBER, Model("nnUNetTrainerMambaMIS", configuration="4d"))

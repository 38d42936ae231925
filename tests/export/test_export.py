"""Programs that run without this package: the same numbers as the network, in torch, onnxruntime and AOTInductor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_mamba_mis.architectures import VARIANTS, MambaMIS
from nnunet_mamba_mis.architectures.amffb import AMFFB
from nnunet_mamba_mis.architectures.basic_blocks import BSSS, CNNBlock, NoSSMBlock, ViTBlock
from nnunet_mamba_mis.architectures.mamba_mis import Depths
from nnunet_mamba_mis.cli import main as cli
from nnunet_mamba_mis.export import fourier, programs
from nnunet_mamba_mis.export.decompositions import decompose_chunked_scan, decompose_pixelwise, decompose_s6
from nnunet_mamba_mis.export.fold import load_fold
from nnunet_mamba_mis.export.scan import scan_steps
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops import selective_scan
from nnunet_mamba_mis.ops.pixelwise import native_pixelwise
from nnunet_mamba_mis.ops.selective_scan.chunked import chunked_scan
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.trainers.parameter_groups import parameter_groups
from nnunet_mamba_mis.utils.errors import UserError

needs_native = pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def s6_arguments(shape=(2, 3, 6, 8), states=5, dtype=torch.float32):
    channels = shape[1]
    A = -torch.rand(channels, states, dtype=dtype) * 8
    weight = torch.randn(channels + 2 * states, channels, dtype=dtype)
    return (
        torch.randn(shape, dtype=dtype),
        weight,
        A,
        torch.randn(channels, dtype=dtype),
        torch.randn(channels).to(dtype),
    )


def expected_s6(u, weight, A, D, delta_bias, discretization):
    delta, B, C = F.linear(u.movedim(1, -1), weight).movedim(-1, 1).split([A.shape[0], A.shape[1], A.shape[1]], dim=1)
    arguments = (u, delta, A, B, C, D, None, delta_bias, True, True)
    return selective_scan(*arguments, discretization=discretization, backend="reference")


@pytest.mark.parametrize("discretization", ["zoh", "mamba"])
@pytest.mark.parametrize("size", [(6, 8), (1, 1), (1, 2), (3, 3), (1, 37), (5, 30)], ids=str)
def test_s6_in_core_operations_is_the_reference(size, discretization):
    arguments = s6_arguments((2, 3, *size))
    y, last_state, _ = decompose_s6(*arguments, discretization == "zoh", False)
    expected, expected_state = expected_s6(*arguments, discretization)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last_state, expected_state, rtol=1e-4, atol=1e-4)


def test_s6_in_core_operations_follows_strides():
    u, *others = s6_arguments((2, 3, 8, 6))
    by_columns = decompose_s6(u.mT, *others, True, False)[0]
    torch.testing.assert_close(by_columns, decompose_s6(u.mT.contiguous(), *others, True, False)[0])


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4], ids=str)
def test_s6_in_core_operations_holds_at_extreme_decays(scale):
    u, weight, A, D, delta_bias = s6_arguments(dtype=torch.float64)
    arguments = (u, weight, A * scale, D, delta_bias)
    y = decompose_s6(*(t.float() for t in arguments), True, False)[0]
    torch.testing.assert_close(y.double(), expected_s6(*arguments, "zoh")[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exact", [True, False])
def test_scan_without_native_code_in_core_operations_is_the_operator(exact):
    u, delta = torch.randn(2, 3, 35), torch.rand(2, 3, 35)
    A, B, C = -torch.rand(3, 4), torch.randn(2, 1, 4, 35), torch.randn(2, 1, 4, 35)
    expected = chunked_scan(u, delta, A, B, C, exact)
    for ours, theirs in zip(decompose_chunked_scan(u, delta, A, B, C, exact)[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_native
def test_pixelwise_layers_in_core_operations_are_the_operator():
    """As a block has them: norm, linear and SiLU on inputs side by side, times a gate, plus a residual."""
    x, y, gate = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 2), torch.randn(2, 4, 5, 6)
    parameters = [torch.randn(5), torch.randn(5), torch.randn(6, 5), torch.randn(6)]
    kinds = [0, 0, 1, 2, 3, 4, 0, 5, 0, 6]  # load, load, concat, norm, linear, silu, load, times, load, plus
    eps = [1e-5 if kind == 2 else 0.0 for kind in kinds]
    arguments = ([x, y, gate, gate], parameters, kinds, eps)
    torch.testing.assert_close(decompose_pixelwise(*arguments), native_pixelwise(*arguments))


@pytest.mark.parametrize("size", [(8, 8), (6, 7), (5, 4), (1, 1), (1, 2), (96, 40)], ids=str)
def test_fourier_transforms_as_matrix_products(size):
    x = torch.randn(2, *size, 3)
    spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
    torch.testing.assert_close(fourier.rfft2(x), spectrum, rtol=1e-4, atol=1e-5)
    spectrum = spectrum * torch.randn_like(spectrum)  # of no real image: frequencies 0 and half have imaginary parts
    expected = torch.fft.irfft2(spectrum, s=size, dim=(1, 2), norm="ortho")
    torch.testing.assert_close(fourier.irfft2(spectrum, size[1]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "steps"), [(65536, 256), (4096, 64), (16, 16), (17, 1), (1, 1), (320, 16)])
def test_a_scan_is_loops_of_the_root_of_its_length(length, steps):
    assert scan_steps(length) == steps


class Part(nn.Module):
    """A part of the network that takes and gives images, as programs want it."""

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.block, self.input_channels, self.patch_size = block, channels, (4, 6)

    def forward(self, x):
        return self.block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Bridge(nn.Module):
    """The bridge between features of two sizes."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.bridge, self.input_channels, self.patch_size = AMFFB([4, 8], 4, **kwargs), 4, (4, 8)

    def forward(self, x):
        fine = x.permute(0, 2, 3, 1)
        coarse = torch.cat([fine, fine], -1)[:, ::2, ::2]
        fine, coarse = self.bridge([fine, coarse])
        return torch.cat([fine.flatten(1), coarse.flatten(1)], 1)


def tiny_network(patch_size: tuple[int, int], **kwargs) -> MambaMIS:
    """A whole network, of one block a stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "S", Depths((1,) * 4, (1,) * 5))
        return MambaMIS(4, 2, patch_size, variant="S", **kwargs)


PARTS = {
    "BSSS": lambda: Part(BSSS(6, (4, 6), 4), 6),
    "mamba": lambda: Part(BSSS(6, (4, 6), 4, discretization="mamba"), 6),
    "ss2d": lambda: Part(BSSS(6, (4, 6), 4, scan="ss2d"), 6),
    "no spectral gate": lambda: Part(BSSS(6, (4, 6), 4, spectral_gate=False), 6),
    "patch of no multiple of 32": lambda: tiny_network(
        (20, 37), block="cnn", attention_bridge=False, fusion_bridge=False
    ),
    "nossm": lambda: Part(NoSSMBlock(6, (4, 6), 4), 6),
    "cnn": lambda: Part(CNNBlock(6, (4, 6)), 6),
    "vit": lambda: Part(ViTBlock(8, (4, 6)), 8),
    "bridge": lambda: Bridge(),
    "bridge, attention": lambda: Bridge(fusion=False),
    "bridge, fusion": lambda: Bridge(attention=False),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_runs_in_onnxruntime(name, tmp_path):
    part = PARTS[name]().eval()
    programs.write_onnx(part, tmp_path / "part.onnx")
    for batch in (1, 3):
        x = torch.randn(batch, part.input_channels, *part.patch_size)
        torch.testing.assert_close(programs.run_onnx(tmp_path / "part.onnx", x), part(x), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_network_in_onnxruntime_is_within_1e4(tmp_path):
    net = tiny_network((64, 64)).eval()
    programs.write_onnx(net, tmp_path / "net.onnx")
    for batch in (1, 2):
        x = torch.randn(batch, 4, 64, 64)
        torch.testing.assert_close(programs.run_onnx(tmp_path / "net.onnx", x), net(x), rtol=0, atol=1e-4)


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["nnunet_mamba_mis"] = None  # importing it would fail
import torch
images, expected = torch.load(sys.argv[2])
if sys.argv[3] == "pt2":
    logits = torch.export.load(sys.argv[1]).module()(images)
else:
    logits = torch._inductor.aoti_load_package(sys.argv[1])(images)
print((logits - expected).abs().max().item())
"""


def difference_without_the_package(file: Path, kind: str, net: nn.Module, images: torch.Tensor) -> float:
    """What another process finds, in which the package cannot be imported."""
    torch.save((images, net(images)), file.with_suffix(".images"))
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, file, file.with_suffix(".images"), kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["pt2", "aoti"])
def test_a_part_runs_without_the_package(kind, tmp_path):
    part = PARTS["BSSS"]().eval()
    programs.FORMATS[kind].write(part, tmp_path / "part.pt2")
    images = torch.randn(1 if kind == "aoti" else 3, 6, 4, 6)
    assert difference_without_the_package(tmp_path / "part.pt2", kind, part, images) <= 1e-5


@pytest.mark.slow
def test_torch_exports_and_compiles_the_plain_module(tmp_path):
    """With the package's operators, at the speed of the network, in batches of any size."""
    net = MambaMIS(3, 2, (32, 32), variant="S").eval()
    x = torch.randn(3, 3, 32, 32)
    program = torch.export.export(net, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=1e-4)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), net(x), rtol=0, atol=1e-4)


def test_a_program_has_no_operator_of_ours():
    part = PARTS["BSSS"]()
    program = programs.portable_program(part)
    assert {str(node.target).partition(".")[0] for node in program.graph.nodes if node.op == "call_function"} <= {
        "aten", "scan", "<built-in function getitem>", "sym_size", "_operator"
    }  # fmt: skip
    assert part.training, "it is as it was"


@pytest.fixture
def model(tmp_path) -> Path:
    """A model's folder as nnU-Net writes it, but for what a checkpoint holds."""
    folder = tmp_path / "nnUNetTrainerMambaMIS__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "R"}, "labels": {"background": 0, "a": 1}}))
    configuration = {
        "patch_size": [32, 32], "batch_size": 2, "batch_dice": True, "spacing": [1.0, 1.0], "architecture": {},
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False], "data_identifier": "none",
    }  # fmt: skip
    plans = {"dataset_name": "Dataset001_Test", "plans_name": "nnUNetPlans", "transpose_forward": [0, 1, 2]}
    plans["foreground_intensity_properties_per_channel"] = {"0": {}}
    plans["configurations"] = {"2d": configuration}
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


def write_checkpoint(model: Path, **contents) -> None:
    usual = {"network_weights": {}, "init_args": {"configuration": "2d"}, "trainer_name": "nnUNetTrainerMambaMIS"}
    torch.save(usual | contents, model / "fold_0" / "checkpoint_final.pth")


class OwnTrainer(nnUNetTrainerMambaMIS):
    """As a user derives one."""

    architecture: ClassVar = {"variant": "S", "discretization": "mamba"}


class OwnNetwork(MambaMIS):
    """As a user derives one: the weights are ours, what is computed with them need not be."""


class OwnNetworkTrainer(nnUNetTrainerMambaMIS):
    """Of a network of one's own."""

    @classmethod
    def build_network_architecture(
        cls, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        arguments = (num_input_channels, num_output_channels, configuration_manager.patch_size)
        return OwnNetwork(*arguments, variant="S", deep_supervision=enable_deep_supervision)


@pytest.fixture
def train(model, monkeypatch):
    """What a trainer leaves in the folder, but for the training; returns its network."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(model.parent / name))
    data = model.parent / "nnUNet_preprocessed" / "Dataset001_Test" / "none"
    data.mkdir(parents=True)
    (data / "case.b2nd").touch()  # by their names nnU-Net tells how to read them

    def run(trainer):
        plans, dataset = (json.loads((model / name).read_text()) for name in ("plans.json", "dataset.json"))
        made = trainer(plans | {"continue_training": False}, "2d", 0, dataset, torch.device("cpu"))
        made.initialize()
        for parameter in made.network.parameters():
            nn.init.normal_(parameter, std=0.3)
        made.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
        return made.network

    return run


def forget_network(model):
    """As checkpoints were before they said what their network is."""
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["optimizer_state"]["network"]
    torch.save(checkpoint, path)


def test_fold_of_a_trainer_of_ones_own_has_the_network_that_it_was_trained_with(train, model):
    trained = train(OwnTrainer).eval()
    fold = load_fold(model, "0")
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(fold.network(x), trained(x)[0])
    assert fold.description["network"] == trained.arguments
    assert (fold.description["network"]["discretization"], fold.description["trainer"]) == ("mamba", "OwnTrainer")

    # which weights alone do not tell
    forget_network(model)
    other = load_fold(model, "0", trainer="nnUNetTrainerMambaMIS_S")
    assert not torch.allclose(other.network(x), fold.network(x), atol=1e-3)
    assert other.description["network"]["discretization"] == "zoh"
    assert "nnUNetTrainerMambaMIS_S has it; the checkpoint does not say" in other.description["network_source"]


def test_user_trainer_that_hides_a_name_of_ours_is_not_taken_for_it(train, model):
    train(type("nnUNetTrainerMambaMIS_S", (OwnTrainer,), {}))
    assert load_fold(model, "0").description["network"]["discretization"] == "mamba"


def test_nnunet_continues_from_a_checkpoint_that_says_what_its_network_is(train, model):
    train(OwnTrainer)
    path = model / "fold_0" / "checkpoint_final.pth"
    state = torch.load(path, weights_only=False)["optimizer_state"]
    network = MambaMIS(1, 2, (32, 32), variant="S", deep_supervision=True)
    groups = parameter_groups(network, 0.01)
    torch.optim.AdamW(groups).load_state_dict(state)


def contradict_trainer(train, model):
    train(OwnTrainer)
    return ["--architecture-of", "nnUNetTrainerMambaMIS_S"]


def contradict_plans(train, model):
    train(OwnTrainer)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["2d"]["patch_size"] = [64, 32]
    (model / "plans.json").write_text(json.dumps(plans))


def contradict_record(train, model):
    train(OwnTrainer)
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["optimizer_state"]["network"]["arguments"]["scan"] = "of next year"
    torch.save(checkpoint, path)


def contradict_class(train, model):
    train(OwnNetworkTrainer)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (contradict_trainer, "has discretization 'mamba', but 'zoh' in nnUNetTrainerMambaMIS_S"),
        (contradict_plans, "has patch_size [32, 32], but [64, 32] in plans.json"),
        (contradict_record, "cannot build the network in"),
        (contradict_class, "is test_export.OwnNetwork, which is not of this package"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_contradicts_the_checkpoints_network_is_one_message(prepare, message, train, model, capsys):
    arguments = prepare(train, model) or []
    output = model.parent / "exported"
    assert cli.main(["export", "-m", str(model), "-f", "0", "-o", str(output), "--format", "pt2", *arguments]) == 1
    assert message in capsys.readouterr().err and not output.exists()


class Strange:
    """What a checkpoint could run code with."""

    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


def refuse_plans(model):
    (model / "plans.json").unlink()


def refuse_json(model):
    (model / "dataset.json").write_text("{")


def refuse_broken_checkpoint(model):
    write_checkpoint(model)
    path = model / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:200])


def refuse_code(model):
    write_checkpoint(model, logging=Strange())


def refuse_trainer(model):
    write_checkpoint(model, trainer_name="MyTrainer")


def refuse_configuration(model):
    write_checkpoint(model, init_args={"configuration": "3d_fullres"})


def refuse_other_file(model):
    torch.save({"weights": {}}, model / "fold_0" / "checkpoint_final.pth")


def refuse_output(model):
    write_checkpoint(model)
    (model.parent / "exported").mkdir()
    (model.parent / "exported" / "file").touch()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (refuse_plans, "plans.json: -m takes the folder that nnUNetv2_train made"),
        (refuse_json, "dataset.json cannot be read"),
        (lambda model: None, "checkpoint_final.pth; choose with -f and -chk: there is none"),
        (refuse_broken_checkpoint, "checkpoint_final.pth cannot be read"),
        (refuse_code, "holds more than weights and numbers, and was not loaded"),
        (refuse_other_file, "is not a checkpoint of nnU-Net"),
        (refuse_configuration, "has no configuration '3d_fullres'"),
        (refuse_trainer, "trained with MyTrainer, which is not a trainer of Mamba-MIS in this package"),
        (refuse_output, "is there already and not empty"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_cannot_be_exported_ends_with_one_message(prepare, message, model, capsys):
    prepare(model)
    output = model.parent / "exported"
    before = sorted(model.parent.rglob("*"))
    assert cli.main(["export", "-m", str(model), "-f", "0", "-o", str(output)]) == 1
    errors = capsys.readouterr().err
    assert message in errors and errors.count("mamba_mis: error") == 1
    assert sorted(model.parent.rglob("*")) == before and not Path("was_run").exists()


def test_checkpoints_may_hold_numbers_and_arrays_of_numpy(model):
    values = [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True), np.random.get_state()]
    write_checkpoint(model, logging=values, trainer_name="MyTrainer")
    with pytest.raises(UserError, match="trained with MyTrainer"):  # so it has been read
        load_fold(model, "0")


def test_missing_packages_are_named_with_the_way_to_get_them(model):
    """In a process that cannot see onnxscript."""
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "onnxscript" else find(name, *rest)
from nnunet_mamba_mis.cli import main as cli
sys.exit(cli.main(["export", "-m", sys.argv[1], "-f", "0", "-o", "exported"]))
"""
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "format onnx needs onnxscript: pip install 'nnunet-mamba-mis[export]'" in done.stderr

"""What of a trained fold is exported, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.cli import main as cli
from nnunet_mamba_mis.export.fold import load_fold
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.trainers.nnUNetTrainerAdamW1e3 import parameter_groups
from nnunet_mamba_mis.utils.errors import UserError
from support.hostile_files import damage_content, damage_values


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def model(tmp_path) -> Path:
    """A model's folder as nnU-Net writes it, but for what a checkpoint holds."""
    folder = tmp_path / "nnUNetTrainerMambaMIS__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    dataset = {"channel_names": {"0": "R"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
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


def change_record(model, change):
    """Change the network's arguments in the checkpoint."""
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint["optimizer_state"]["network"]["arguments"])
    torch.save(checkpoint, path)


@pytest.mark.feature("Export", "the network is the checkpoint's; contradictions are refused")
def test_fold_of_a_trainer_of_ones_own_has_the_network_that_it_was_trained_with(train, model):
    trained = train(OwnTrainer).eval()
    fold = load_fold(model, "0")
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(fold.network(x), trained(x)[0])
    assert fold.description["network"] == trained.arguments
    assert (fold.description["network"]["discretization"], fold.description["trainer"]) == ("mamba", "OwnTrainer")

    # checkpoints from before there was a choice name no stem
    change_record(model, lambda arguments: arguments.pop("stem"))
    assert load_fold(model, "0").network.arguments == trained.arguments

    # which weights alone do not tell
    forget_network(model)
    other = load_fold(model, "0", trainer="nnUNetTrainerMambaMIS_S")
    assert not torch.allclose(other.network(x), fold.network(x), atol=1e-3)
    assert other.description["network"]["discretization"] == "zoh"
    assert "nnUNetTrainerMambaMIS_S has it; the checkpoint does not say" in other.description["network_source"]


@pytest.mark.feature("Export", "the network is the checkpoint's; contradictions are refused")
def test_user_trainer_that_hides_a_name_of_ours_is_not_taken_for_it(train, model):
    train(type("nnUNetTrainerMambaMIS_S", (OwnTrainer,), {}))
    assert load_fold(model, "0").description["network"]["discretization"] == "mamba"


@pytest.mark.feature("Export", "nnU-Net and torch pass over what the checkpoint says")
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
    change_record(model, lambda arguments: arguments.update(scan="of next year"))


def contradict_class(train, model):
    train(OwnNetworkTrainer)


@pytest.mark.feature("Export", "the network is the checkpoint's; contradictions are refused")
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (contradict_trainer, "has discretization 'mamba', but 'zoh' in nnUNetTrainerMambaMIS_S"),
        (contradict_plans, "has patch_size [32, 32], but [64, 32] in plans.json"),
        (contradict_record, "cannot build the network in"),
        (contradict_class, "OwnNetwork, which is not of this package"),
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


@pytest.mark.feature("Export", "what cannot be exported, and checkpoints that hold code")
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (refuse_plans, "plans.json does not exist: -m takes the folder that nnUNetv2_train made"),
        (refuse_json, "dataset.json cannot be read"),
        (lambda model: None, "checkpoint_final.pth does not exist: train a fold first"),
        (refuse_broken_checkpoint, "checkpoint_final.pth cannot be read"),
        (refuse_code, "was not loaded: it holds"),
        (refuse_other_file, "is not a usable checkpoint: network_weights"),
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_files_beside_a_fold_are_taken_or_named(train, model, name):
    train(OwnTrainer)
    path = model / name
    failed = 0
    for state in chain(damage_content(path), damage_values(path, 60, seed=0)):
        try:
            json.dumps(load_fold(model, "0").description)
        except UserError as error:
            failed += 1
            assert str(path) in str(error) or name in str(error), state
        except Exception as error:
            raise AssertionError(state) from error
    assert failed


@pytest.mark.parametrize(
    "contents",
    [
        {"network_weights": []}, {"network_weights": {"a": 1}}, {"init_args": None}, {"trainer_name": 3},
        {"init_args": {"configuration": 1}}, {"inference_allowed_mirroring_axes": "all"},
        {"optimizer_state": {"network": 1}},
        {"optimizer_state": {"network": {"class": "nnunet_mamba_mis.architectures.MambaMIS", "arguments": [1]}}},
    ],
    ids=str,
)  # fmt: skip
def test_checkpoint_with_values_of_other_types_is_one_message(model, capsys, contents):
    write_checkpoint(model, **contents)
    assert cli.main(["export", "-m", str(model), "-f", "0", "-o", str(model.parent / "exported")]) == 1
    assert "checkpoint_final.pth" in capsys.readouterr().err


@pytest.mark.parametrize("kwargs", [{"variant": 3}, {"variant": "B", "widths": []}, {"discretization": None}], ids=str)
def test_plans_of_a_network_that_cannot_be_built_are_named(model, kwargs):
    plans = json.loads((model / "plans.json").read_text())
    entry = {"network_class_name": "nnunet_mamba_mis.architectures.MambaMIS", "arch_kwargs": kwargs}
    plans["configurations"]["2d"]["architecture"] = entry
    (model / "plans.json").write_text(json.dumps(plans))
    write_checkpoint(model, trainer_name="nnUNetTrainer")
    with pytest.raises(UserError, match=r"plans\.json .*architecture"):
        load_fold(model, "0")


@pytest.mark.parametrize("arguments", [["-f", "0" * 300], ["-f", "0", "-chk", "c" * 300]], ids=["fold", "checkpoint"])
def test_names_that_no_file_can_have_are_missing_files(model, capsys, arguments):
    assert cli.main(["export", "-m", str(model), "-o", str(model.parent / "exported"), *arguments]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_checkpoints_may_hold_numbers_and_arrays_of_numpy(model):
    values = [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True), np.random.get_state()]
    write_checkpoint(model, logging=values, trainer_name="MyTrainer")
    with pytest.raises(UserError, match="trained with MyTrainer"):  # so it has been read
        load_fold(model, "0")


def test_missing_packages_are_named_with_the_way_to_get_them(model, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest)
    )
    assert cli.main(["export", "-m", str(model), "-f", "0", "-o", "exported"]) == 1
    error = capsys.readouterr().err
    assert "onnxscript" in error and "nnunet-mamba-mis[export]" in error

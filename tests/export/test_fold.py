"""Loading a trained fold for export: its network, its description, and errors."""

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
from nnunet_mamba_mis.trainers.adamw import parameter_groups
from nnunet_mamba_mis.utils.errors import UserError
from support.hostile_files import damage_content, damage_values


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def model(tmp_path) -> Path:
    """A model's folder as nnU-Net writes it, without a checkpoint."""
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
    defaults = {"network_weights": {}, "init_args": {"configuration": "2d"}, "trainer_name": "nnUNetTrainerMambaMIS"}
    torch.save(defaults | contents, model / "fold_0" / "checkpoint_final.pth")


class OwnTrainer(nnUNetTrainerMambaMIS):
    """A trainer that a user derived."""

    architecture: ClassVar = {"variant": "S", "discretization": "mamba"}


class OwnNetwork(MambaMIS):
    """A network that a user derived: its weights look like Mamba-MIS, but its forward may differ."""


class OwnNetworkTrainer(nnUNetTrainerMambaMIS):
    """A user's trainer of a user's network."""

    @classmethod
    def build_network_architecture(
        cls, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        arguments = (num_input_channels, num_output_channels, configuration_manager.patch_size)
        return OwnNetwork(*arguments, variant="S", deep_supervision=enable_deep_supervision)


@pytest.fixture
def train(model, monkeypatch):
    """Return a function that saves a trainer's checkpoint with random weights, and returns the network."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(model.parent / name))
    data = model.parent / "nnUNet_preprocessed" / "Dataset001_Test" / "none"
    data.mkdir(parents=True)
    (data / "case.b2nd").touch()  # nnU-Net infers the format from the file name

    def run(trainer):
        plans, dataset = (json.loads((model / name).read_text()) for name in ("plans.json", "dataset.json"))
        instance = trainer(plans | {"continue_training": False}, "2d", 0, dataset, torch.device("cpu"))
        instance.initialize()
        for parameter in instance.network.parameters():
            nn.init.normal_(parameter, std=0.3)
        instance.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
        return instance.network

    return run


def forget_network(model):
    """Remove the record of the network, which old checkpoints lack."""
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["optimizer_state"]["network"]
    torch.save(checkpoint, path)


def change_record(model, change):
    """Change the network's recorded arguments in the checkpoint."""
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint["optimizer_state"]["network"]["arguments"])
    torch.save(checkpoint, path)


@pytest.mark.feature("Export", "the network recorded in the checkpoint; contradictions are refused")
def test_fold_of_a_users_trainer_keeps_its_network(train, model):
    trained = train(OwnTrainer).eval()
    fold = load_fold(model, "0")
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(fold.network(x), trained(x)[0])
    assert fold.description["network"] == trained.arguments
    assert (fold.description["network"]["discretization"], fold.description["trainer"]) == ("mamba", "OwnTrainer")

    # checkpoints written before the option `stem` existed do not record it
    change_record(model, lambda arguments: arguments.pop("stem"))
    assert load_fold(model, "0").network.arguments == trained.arguments

    # the weights alone do not determine the discretization
    forget_network(model)
    other = load_fold(model, "0", trainer="nnUNetTrainerMambaMIS_S")
    assert not torch.allclose(other.network(x), fold.network(x), atol=1e-3)
    assert other.description["network"]["discretization"] == "zoh"
    assert "built by nnUNetTrainerMambaMIS_S; not recorded" in other.description["network_source"]


@pytest.mark.feature("Export", "the network recorded in the checkpoint; contradictions are refused")
def test_users_trainer_with_a_name_of_this_package_keeps_its_network(train, model):
    train(type("nnUNetTrainerMambaMIS_S", (OwnTrainer,), {}))
    assert load_fold(model, "0").description["network"]["discretization"] == "mamba"


@pytest.mark.feature("Export", "nnU-Net and torch ignore the network recorded in the checkpoint")
def test_optimizer_loads_a_state_that_records_the_network(train, model):
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


@pytest.mark.feature("Export", "the network recorded in the checkpoint; contradictions are refused")
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (contradict_trainer, "has discretization 'mamba', but 'zoh' in nnUNetTrainerMambaMIS_S"),
        (contradict_plans, "has patch_size [32, 32], but [64, 32] in plans.json"),
        (contradict_record, "cannot build the network in"),
        (contradict_class, "OwnNetwork, which does not belong to this package"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_contradiction_to_the_recorded_network_gives_one_error(prepare, message, train, model, capsys):
    arguments = prepare(train, model) or []
    output = model.parent / "exported"
    assert cli.main(["export", "-m", str(model), "-f", "0", "-o", str(output), "--format", "pt2", *arguments]) == 1
    assert message in capsys.readouterr().err and not output.exists()


class Strange:
    """An object that runs code when a checkpoint is unpickled."""

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


@pytest.mark.feature("Export", "one clear error for folds that cannot be exported and for checkpoints that hold code")
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
        (refuse_trainer, "trained with MyTrainer, which is not a Mamba-MIS trainer of this package"),
        (refuse_output, "already exists and is not empty"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_fold_that_cannot_be_exported_gives_one_error(prepare, message, model, capsys):
    prepare(model)
    output = model.parent / "exported"
    before = sorted(model.parent.rglob("*"))
    assert cli.main(["export", "-m", str(model), "-f", "0", "-o", str(output)]) == 1
    errors = capsys.readouterr().err
    assert message in errors and errors.count("mamba_mis: error") == 1
    assert sorted(model.parent.rglob("*")) == before and not Path("was_run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_damaged_plans_or_dataset_are_used_or_named_in_the_error(train, model, name):
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
def test_checkpoint_with_values_of_wrong_types_gives_one_error(model, capsys, contents):
    write_checkpoint(model, **contents)
    assert cli.main(["export", "-m", str(model), "-f", "0", "-o", str(model.parent / "exported")]) == 1
    assert "checkpoint_final.pth" in capsys.readouterr().err


@pytest.mark.parametrize("kwargs", [{"variant": 3}, {"variant": "B", "widths": []}, {"discretization": None}], ids=str)
def test_error_names_plans_whose_network_cannot_be_built(model, kwargs):
    plans = json.loads((model / "plans.json").read_text())
    entry = {"network_class_name": "nnunet_mamba_mis.architectures.MambaMIS", "arch_kwargs": kwargs}
    plans["configurations"]["2d"]["architecture"] = entry
    (model / "plans.json").write_text(json.dumps(plans))
    write_checkpoint(model, trainer_name="nnUNetTrainer")
    with pytest.raises(UserError, match=r"plans\.json: .*configurations\.2d\.architecture"):
        load_fold(model, "0")


@pytest.mark.parametrize("arguments", [["-f", "0" * 300], ["-f", "0", "-chk", "c" * 300]], ids=["fold", "checkpoint"])
def test_overlong_fold_or_checkpoint_name_gives_a_one_line_error(model, capsys, arguments):
    assert cli.main(["export", "-m", str(model), "-o", str(model.parent / "exported"), *arguments]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_checkpoint_may_hold_numpy_scalars_and_arrays(model):
    values = [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True), np.random.get_state()]
    write_checkpoint(model, logging=values, trainer_name="MyTrainer")
    with pytest.raises(UserError, match="trained with MyTrainer"):  # raised only after reading succeeded
        load_fold(model, "0")


def test_error_names_missing_packages_and_how_to_install_them(model, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest)
    )
    assert cli.main(["export", "-m", str(model), "-f", "0", "-o", "exported"]) == 1
    error = capsys.readouterr().err
    assert "onnxscript" in error and "nnunet-mamba-mis[export]" in error

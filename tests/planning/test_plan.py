"""The plans of `mamba_mis plan`; test_planned_training.py trains and predicts with them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_mamba_mis.architectures import MambaMIS, deep_supervision_sizes
from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.planning.memory import training_bytes
from support import fingerprint
from support.full_disk import full_disk
from support.images import disc_image

PLANS = "nnUNetMambaMISPlans"
DATASET = "Dataset007_Discs"

pytestmark = pytest.mark.usefixtures("listed_in_one_process")


def write_dataset(raw: Path, ending: str, write: Callable[[Path, np.ndarray], object]) -> None:
    """Write four grey images with a bright disc, and their labels."""
    for kind in ("images", "labels"):
        (raw / DATASET / f"{kind}Tr").mkdir(parents=True)
    for case in range(4):
        (image,), label = disc_image(case)
        write(raw / DATASET / f"imagesTr/case{case}_0000{ending}", image)
        write(raw / DATASET / f"labelsTr/case{case}{ending}", label)
    labels = {"background": 0, "disc": 1}
    description = {"channel_names": {"0": "grey"}, "labels": labels, "numTraining": 4, "file_ending": ending}
    (raw / DATASET / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def preprocessed(raw, tmp_path, monkeypatch):
    """The nnUNet_preprocessed folder of a dataset with tiny images."""
    write_dataset(raw, ".png", imageio.imwrite)
    folder = tmp_path / "nnUNet_preprocessed" / DATASET
    folder.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    return folder


def write_fingerprint(folder: Path, height: int, width: int, spacing=(999, 1, 1), slices: int = 1) -> None:
    """Write the fingerprint that nnU-Net would extract from images of this size."""
    fingerprint.write_fingerprint(folder, [(slices, height, width)] * 4, 1, spacing)


def set_number_of_cases(folder: Path, number: int) -> None:
    path = Path(os.environ["nnUNet_raw"]) / folder.name / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"numTraining": number}))


def planned(folder: Path, *arguments: object) -> dict:
    assert main(["plan", "-d", "7", *map(str, arguments)]) == 0
    return json.loads((folder / f"{PLANS}.json").read_text())["configurations"]["2d"]


@pytest.mark.feature("Planning", "patch size from the median image, in its aspect, within memory")
def test_patch_is_the_median_image_if_two_fit(preprocessed):
    write_fingerprint(preprocessed, 300, 410)
    assert planned(preprocessed)["patch_size"] == [320, 416]


@pytest.mark.feature("Planning", "patch size from the median image, in its aspect, within memory")
def test_patch_of_large_images_keeps_their_aspect(preprocessed):
    write_fingerprint(preprocessed, 1080, 1920)
    height, width = planned(preprocessed, "--gpu-memory", 4)["patch_size"]
    assert height < 1080 and width < 1920
    assert width / height == pytest.approx(1920 / 1080, rel=0.1)


@pytest.mark.feature("Planning", "patch size from the median image, in its aspect, within memory")
def test_patch_of_anisotropic_pixels_keeps_their_extent(preprocessed):
    write_fingerprint(preprocessed, 4000, 2000, spacing=(999, 1, 2))
    height, width = planned(preprocessed, "--gpu-memory", 80)["patch_size"]
    assert height == pytest.approx(2 * width, rel=0.05) and height * width <= 1.05 * 2048**2


@pytest.mark.feature("Planning", "batch size within memory and a twentieth of the dataset")
def test_batch_fills_the_memory(preprocessed):
    write_fingerprint(preprocessed, 256, 256)
    set_number_of_cases(preprocessed, 10_000)
    batches = {gb: planned(preprocessed, "--gpu-memory", gb)["batch_size"] for gb in (4, 8, 16)}
    assert batches[4] < batches[8] < batches[16]
    for gb, batch in batches.items():
        fits, overflows = (training_bytes("cuda", "B", (256, 256), b, 1) + 0.5e9 for b in (batch, batch + 1))
        assert fits <= gb * 1e9 < overflows


@pytest.mark.feature("Planning", "batch size within memory and a twentieth of the dataset")
def test_batch_is_at_most_a_twentieth_of_the_dataset(preprocessed):
    write_fingerprint(preprocessed, 256, 256)
    set_number_of_cases(preprocessed, 100)
    assert planned(preprocessed, "--gpu-memory", 80)["batch_size"] == 5
    set_number_of_cases(preprocessed, 4)
    assert planned(preprocessed, "--gpu-memory", 80)["batch_size"] == 2


@pytest.mark.feature("Planning", "patch size from the median image, in its aspect, within memory")
def test_larger_variant_gets_less_of_an_image(preprocessed):
    write_fingerprint(preprocessed, 2000, 2000)
    sides = [planned(preprocessed, "--variant", variant)["patch_size"][0] for variant in "SBL"]
    assert sides == sorted(sides, reverse=True) and len(set(sides)) == 3


@pytest.mark.feature("Planning", "the printed commands name the trainer of the planned network")
@pytest.mark.parametrize(
    ("options", "trainer"),
    [
        (("--variant", "H", "--stem", "conv"), "nnUNetTrainerMambaMIS_conv"),
        (("--stem", "conv"), "nnUNetTrainerMambaMIS"),
    ],
    ids=["H", "B"],
)
def test_printed_commands_name_the_trainer(preprocessed, capsys, options, trainer):
    write_fingerprint(preprocessed, 100, 100)
    planned(preprocessed, *options)
    assert f"-tr {trainer} -p" in capsys.readouterr().out


@pytest.mark.feature("Planning", "deep supervision of nnU-Net's trainers in the network's sizes")
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_plans_name_the_network_with_strides_that_give_its_deep_supervision(preprocessed, stem):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    write_fingerprint(preprocessed, 70, 90)
    planned(preprocessed, "--variant", "S", "--stem", stem)
    manager = PlansManager(str(preprocessed / f"{PLANS}.json"))
    configuration = manager.get_configuration("2d")
    network = nnUNetTrainer.build_network_architecture(manager, configuration, 1, 2, True)
    assert type(network) is MambaMIS and network.arguments["stem"] == stem

    trainer = object.__new__(nnUNetTrainer)  # its constructor needs a dataset
    trainer.enable_deep_supervision, trainer.configuration_manager = True, configuration
    height, width = configuration.patch_size
    expected = [(round(height * a), round(width * b)) for a, b in trainer._get_deep_supervision_scales()]
    outputs = network(torch.zeros(1, 1, height, width))
    assert [tuple(y.shape[2:]) for y in outputs] == expected == deep_supervision_sizes((height, width))


@pytest.mark.feature("Planning", "deep supervision of nnU-Net's trainers in the network's sizes")
def test_strides_of_another_network_are_refused():
    with pytest.raises(ValueError, match="strides"):
        MambaMIS(1, 2, (32, 32), variant="S", strides=[[1, 1], [2, 2]])


@pytest.mark.slow
@pytest.mark.feature("Planning", "nnU-Net's preprocessed data are reused if they fit")
def test_data_preprocessed_by_nnunet_are_reused(preprocessed, capsys):
    write_fingerprint(preprocessed, 40, 40)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    plan_experiment_dataset(7)
    (preprocessed / "nnUNetPlans_2d").mkdir()
    (preprocessed / "nnUNetPlans_2d" / "case0.b2nd").touch()
    assert planned(preprocessed)["data_identifier"] == "nnUNetPlans_2d"
    assert "nnUNetv2_preprocess" not in capsys.readouterr().out
    assert planned(preprocessed)["data_identifier"] == "nnUNetPlans_2d", "the same when planned again"

    # data with another spacing are not reused
    plan_experiment_dataset(7, overwrite_target_spacing=(999.0, 2.0, 2.0))
    assert planned(preprocessed)["data_identifier"] == f"{PLANS}_2d"
    assert f"nnUNetv2_preprocess -d 7 -plans_name {PLANS} -c 2d" in capsys.readouterr().out


@pytest.mark.feature("Planning", "before nnU-Net has planned, data get their own folder")
def test_data_get_their_own_folder_before_nnunet_has_planned(preprocessed):
    """nnU-Net could later plan another spacing, and would then write other data into the folder nnUNetPlans_2d."""
    write_fingerprint(preprocessed, 40, 40)
    assert planned(preprocessed)["data_identifier"] == f"{PLANS}_2d"


@pytest.fixture
def trained(preprocessed, tmp_path, monkeypatch):
    """Write plans for S; return the folder of a network that was trained with them."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    write_fingerprint(preprocessed, 40, 40)
    planned(preprocessed, "--variant", "S")
    folder = tmp_path / "results" / DATASET / f"nnUNetTrainerMambaMIS__{PLANS}__2d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_latest.pth").touch()
    return folder


def replan_variant(folder):
    return ["--variant", "B"]


def replan_stem(folder):
    return ["--variant", "S", "--stem", "conv"]


def replan_patch(folder):
    write_fingerprint(folder, 200, 200)
    return ["--variant", "S"]


@pytest.mark.feature("Planning", "plans of trained networks are not replaced; `--plans-name`")
@pytest.mark.parametrize("change", [replan_variant, replan_stem, replan_patch])
def test_plans_that_a_network_was_trained_with_are_not_changed(trained, preprocessed, capsys, change):
    path = preprocessed / f"{PLANS}.json"
    before = path.read_bytes()
    arguments = change(preprocessed)
    assert main(["plan", "-d", "7", *arguments]) == 1
    assert_error_names(capsys, trained, "--plans-name")
    assert path.read_bytes() == before

    assert main(["plan", "-d", "7", *arguments, "--plans-name", "other"]) == 0
    assert json.loads((preprocessed / "other.json").read_text())["plans_name"] == "other"
    assert "nnUNetv2_train 7 2d all -tr nnUNetTrainerMambaMIS -p other" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.parametrize(("splits", "fold"), [(None, "all"), ([{"train": ["case0"], "val": ["case1"]}], "0")])
def test_fold_to_train_is_one_that_nnunet_can_make(preprocessed, capsys, splits, fold):
    write_fingerprint(preprocessed, 64, 64)
    if splits is not None:
        (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    assert main(["plan", "-d", "7"]) == 0
    assert f"nnUNetv2_train 7 2d {fold} -tr" in capsys.readouterr().out


@pytest.mark.feature("Planning", "plans of trained networks are not replaced; `--plans-name`")
def test_unchanged_plans_may_be_written_again(trained, preprocessed):
    planned(preprocessed, "--variant", "S")


@pytest.mark.feature("Planning", "plans of trained networks are not replaced; `--plans-name`")
def test_plans_that_no_network_was_trained_with_are_replaced(preprocessed):
    write_fingerprint(preprocessed, 40, 40)
    for variant in "SB":
        assert planned(preprocessed, "--variant", variant)["architecture"]["arch_kwargs"]["variant"] == variant


@pytest.mark.feature("Planning", "plans of trained networks are not replaced; `--plans-name`")
def test_plans_of_another_network_are_not_replaced(preprocessed, capsys):
    write_fingerprint(preprocessed, 40, 40)
    path = preprocessed / "nnUNetResEncUNetMPlans.json"
    path.write_text(json.dumps({"configurations": {"2d": {"architecture": {"network_class_name": "a.ResEncUNet"}}}}))
    before = path.read_bytes()
    assert main(["plan", "-d", "7", "--plans-name", path.stem]) == 1
    assert_error_names(capsys, path, "--plans-name")
    assert path.read_bytes() == before


@pytest.mark.feature("Planning", "3D datasets get the 2d configuration")
def test_3d_dataset_gets_only_the_2d_configuration(preprocessed, raw):
    shutil.rmtree(raw / DATASET)
    volume = (20, 1, 1)
    write_dataset(
        raw, ".nii.gz", lambda path, image: sitk.WriteImage(sitk.GetImageFromArray(np.tile(image, volume)), path)
    )
    write_fingerprint(preprocessed, 48, 40, slices=20, spacing=(1, 1, 1))
    assert planned(preprocessed)["patch_size"] == [64, 64]
    plans = json.loads((preprocessed / f"{PLANS}.json").read_text())
    assert list(plans["configurations"]) == ["2d"]


@pytest.mark.feature("Planning", "a user's configurations in the plans are kept")
def test_users_configurations_in_the_plans_are_kept(preprocessed):
    write_fingerprint(preprocessed, 40, 40)
    planned(preprocessed)
    path = preprocessed / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["mine"] = {"inherits_from": "2d", "batch_size": 3}
    path.write_text(json.dumps(plans))
    planned(preprocessed)
    assert json.loads(path.read_text())["configurations"]["mine"]["batch_size"] == 3


MESSAGES = {
    "-d 7": "Dataset007_Discs has no fingerprint yet: run nnUNetv2_plan_and_preprocess -d 7 -c 2d "
    "--verify_dataset_integrity first",
    "-d Dataset008_Absent": "{raw}/Dataset008_Absent/dataset.json does not exist: planning needs the raw dataset",
    "-d discs": "discs is neither the id nor the full name of a dataset, such as 27 or Dataset027_Name",
    "-d 7 --gpu-memory 0": "--gpu-memory 0: it must be above 0 and finite",
    "-d 7 --gpu-memory inf": "--gpu-memory inf: it must be above 0 and finite",
    "-d 7 --gpu-memory nan": "--gpu-memory nan: it must be above 0 and finite",
    f"-d 7 --plans-name {'a' * 300}": f"--plans-name {'a' * 300}: use at most 100 characters",
    "-d 7 --plans-name mine.": "--plans-name mine.: use letters, digits, '.', '-', and single '_' between them",
    "-d 7 --plans-name ..": "--plans-name ..: use letters, digits, '.', '-', and single '_' between them",
    "-d 7 --plans-name ../mine": "--plans-name ../mine: use letters, digits, '.', '-', and single '_' between them",
    "-d 7 --plans-name my__plans": "--plans-name my__plans: use letters, digits, '.', '-', and single '_' between them",
    "-d 7 --plans-name nnUNetPlans": "--plans-name nnUNetPlans: nnU-Net's own plans have this name, choose another",
}


@pytest.mark.feature("Planning", "what cannot be planned ends in one message")
@pytest.mark.parametrize(("arguments", "message"), MESSAGES.items(), ids=MESSAGES)
def test_planning_errors_are_one_message(preprocessed, raw, capsys, arguments, message):
    assert main(["plan", *arguments.split()]) == 1
    assert capsys.readouterr().err == f"mamba_mis: error: {message.format(raw=raw)}\n"
    assert not list(preprocessed.iterdir())


def assert_error_names(capsys, *names: object) -> None:
    """Check that stderr has one line, with all of these names."""
    (line,) = capsys.readouterr().err.splitlines()
    assert [name for name in names if str(name) not in line] == []


@pytest.mark.parametrize(
    ("arguments", "unset", "named"),
    [
        ("-d 8", "nnUNet_results", "8"),  # no dataset has this id
        ("-d 7", "nnUNet_preprocessed", "export nnUNet_preprocessed="),
        ("-d 7 --gpu-memory 0.1", "nnUNet_results", "--gpu-memory 0.1"),  # too little for the smallest patch
    ],
    ids=["id", "folder", "memory"],
)
def test_unusable_argument_or_folder_is_named(preprocessed, monkeypatch, capsys, arguments, unset, named):
    write_fingerprint(preprocessed, 40, 40)
    monkeypatch.delenv(unset, raising=False)
    assert main(["plan", *arguments.split()]) == 1
    assert_error_names(capsys, named)


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [
        ("nnUNet_n_proc_DA", "0", 0),
        ("nnUNet_n_proc_DA", "12", 0),
        ("nnUNet_n_proc_DA", "", 1),
        ("nnUNet_n_proc_DA", "abc", 1),
        ("nnUNet_n_proc_DA", "-1", 1),
        ("nnUNet_def_n_proc", "2", 0),
        ("nnUNet_def_n_proc", "0", 1),
        ("nnUNet_def_n_proc", "1.5", 1),
    ],
)
def test_numbers_of_processes_are_accepted_or_named(preprocessed, monkeypatch, capsys, variable, value, status):
    write_fingerprint(preprocessed, 40, 40)
    monkeypatch.setenv(variable, value)
    assert main(["plan", "-d", "7"]) == status
    if status:
        assert_error_names(capsys, f"{variable}={value!r}")


def test_more_memory_than_any_gpu_has_is_enough(preprocessed):
    write_fingerprint(preprocessed, 64, 64)
    assert planned(preprocessed, "--gpu-memory", "1e308")["batch_size"] == 2


def test_unreadable_image_is_named(preprocessed, raw, capsys):
    write_fingerprint(preprocessed, 40, 40)
    image = raw / DATASET / "imagesTr" / "case0_0000.png"
    image.write_bytes(image.read_bytes()[:60])
    assert main(["plan", "-d", "7"]) == 1
    assert_error_names(capsys, image)
    for other in image.parent.iterdir():
        other.unlink()
    assert main(["plan", "-d", "7"]) == 1
    assert_error_names(capsys, "imagesTr")


def test_splits_that_contradict_each_other_are_named(preprocessed, capsys):
    write_fingerprint(preprocessed, 40, 40)
    raw = Path(os.environ["nnUNet_raw"]) / DATASET
    for folder, validation in ((raw, "case0"), (preprocessed, "case1")):
        split = {"train": ["case2", "case3"], "val": [validation]}
        (folder / "splits_final.json").write_text(json.dumps([split]))
    assert main(["plan", "-d", "7"]) == 1
    assert_error_names(capsys, "splits_final.json", DATASET)


def test_full_disk_leaves_the_previous_plans(preprocessed, capsys):
    write_fingerprint(preprocessed, 70, 90)
    planned(preprocessed)
    before = (preprocessed / f"{PLANS}.json").read_bytes()
    with full_disk(1000):
        assert main(["plan", "-d", "7"]) == 1
    assert_error_names(capsys, preprocessed / f"{PLANS}.json")
    assert (preprocessed / f"{PLANS}.json").read_bytes() == before
    assert not list(preprocessed.glob("*.partial"))


def test_plans_that_are_cut_off_are_named(preprocessed, capsys):
    write_fingerprint(preprocessed, 70, 90)
    path = preprocessed / f"{PLANS}.json"
    path.write_text('{"configurations": {')
    assert main(["plan", "-d", "7"]) == 1
    assert_error_names(capsys, path)

"""`mamba_mis plan`: what it plans, and training and prediction with it through nnU-Net's own commands."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_mamba_mis.architectures import MambaMIS, deep_supervision_sizes
from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.planning.memory import kept_bytes, parameters, training_bytes
from support.paths import REPOSITORY
from support.scans import use_backend

SCRIPTS = Path(sys.executable).parent
PLANS = "nnUNetMambaMISPlans"
DATASET = "Dataset007_Discs"


def write_dataset(raw: Path, cases: int = 10, size: tuple[int, int] = (60, 50)) -> Path:
    """Grey images with a bright disc."""
    folder = raw / DATASET
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    rng = np.random.default_rng(0)
    row, column = np.ogrid[: size[0], : size[1]]
    for case in range(cases):
        mask = (row - rng.integers(20, 40)) ** 2 + (column - rng.integers(20, 30)) ** 2 < 64
        image = (rng.integers(0, 60, size) + 150 * mask).astype(np.uint8)
        imageio.imwrite(folder / f"imagesTr/case{case}_0000.png", image)
        imageio.imwrite(folder / f"labelsTr/case{case}.png", mask.astype(np.uint8))
    write_dataset_json(folder, cases, ".png")
    return folder


def write_dataset_json(folder: Path, cases: int, ending: str) -> None:
    labels = {"background": 0, "disc": 1}
    channels = {"0": "grey"}
    description = {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def preprocessed(raw, tmp_path, monkeypatch):
    """The folder of a dataset in nnUNet_preprocessed, whose raw images are tiny."""
    write_dataset(raw, cases=4, size=(40, 40))
    folder = tmp_path / "nnUNet_preprocessed" / DATASET
    folder.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    return folder


def write_fingerprint(folder: Path, height: int, width: int, spacing=(999, 1, 1)) -> None:
    """What nnU-Net would find in images of this size."""
    intensities = {"max": 255, "mean": 100, "median": 100, "min": 0, "percentile_00_5": 0, "percentile_99_5": 255}
    fingerprint = {
        "spacings": [spacing] * 4,
        "shapes_after_crop": [[1, height, width]] * 4,
        "foreground_intensity_properties_per_channel": {"0": intensities | {"std": 50}},
        "median_relative_size_after_cropping": 1.0,
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def set_number_of_cases(folder: Path, number: int) -> None:
    path = Path(os.environ["nnUNet_raw"]) / folder.name / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"numTraining": number}))


def planned(folder: Path, *arguments: object) -> dict:
    assert main(["plan", "-d", "7", *map(str, arguments)]) == 0
    return json.loads((folder / f"{PLANS}.json").read_text())["configurations"]["2d"]


def test_patch_is_the_median_image_where_two_of_it_fit(preprocessed):
    write_fingerprint(preprocessed, 300, 410)
    assert planned(preprocessed)["patch_size"] == [320, 416]


def test_patch_of_large_images_keeps_their_aspect(preprocessed):
    write_fingerprint(preprocessed, 1080, 1920)
    height, width = planned(preprocessed, "--gpu-memory", 4)["patch_size"]
    assert height < 1080 and width < 1920
    assert width / height == pytest.approx(1920 / 1080, rel=0.1)


def test_patch_of_anisotropic_pixels_keeps_their_extent(preprocessed):
    write_fingerprint(preprocessed, 4000, 2000, spacing=(999, 1, 2))
    height, width = planned(preprocessed, "--gpu-memory", 80)["patch_size"]
    assert height == pytest.approx(2 * width, rel=0.05) and height * width <= 1.05 * 2048**2


def test_batch_fills_the_memory(preprocessed):
    write_fingerprint(preprocessed, 256, 256)
    set_number_of_cases(preprocessed, 10_000)
    batches = {gb: planned(preprocessed, "--gpu-memory", gb)["batch_size"] for gb in (4, 8, 16)}
    assert batches[4] < batches[8] < batches[16]
    for gb, batch in batches.items():
        fits, overflows = (training_bytes("cuda", "B", (256, 256), b, 1) + 0.5e9 for b in (batch, batch + 1))
        assert fits <= gb * 1e9 < overflows


def test_batch_is_at_most_a_twentieth_of_the_dataset(preprocessed):
    write_fingerprint(preprocessed, 256, 256)
    set_number_of_cases(preprocessed, 100)
    assert planned(preprocessed, "--gpu-memory", 80)["batch_size"] == 5
    set_number_of_cases(preprocessed, 4)
    assert planned(preprocessed, "--gpu-memory", 80)["batch_size"] == 2


def test_larger_variant_gets_less_of_an_image(preprocessed):
    write_fingerprint(preprocessed, 2000, 2000)
    sides = [planned(preprocessed, "--variant", variant)["patch_size"][0] for variant in "SBL"]
    assert sides == sorted(sides, reverse=True) and len(set(sides)) == 3


def test_plans_name_the_network_with_strides_that_give_its_deep_supervision(preprocessed):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    write_fingerprint(preprocessed, 70, 90)
    planned(preprocessed, "--variant", "S")
    manager = PlansManager(str(preprocessed / f"{PLANS}.json"))
    configuration = manager.get_configuration("2d")
    network = nnUNetTrainer.build_network_architecture(manager, configuration, 1, 2, True)
    assert type(network) is MambaMIS

    trainer = object.__new__(nnUNetTrainer)  # its constructor wants a dataset
    trainer.enable_deep_supervision, trainer.configuration_manager = True, configuration
    height, width = configuration.patch_size
    wanted = [(round(height * a), round(width * b)) for a, b in trainer._get_deep_supervision_scales()]
    outputs = network(torch.zeros(1, 1, height, width))
    assert [tuple(y.shape[2:]) for y in outputs] == wanted == deep_supervision_sizes((height, width))


def test_strides_of_another_network_are_refused():
    with pytest.raises(ValueError, match="strides"):
        MambaMIS(1, 2, (32, 32), variant="S", strides=[[1, 1], [2, 2]])


def test_data_that_nnunet_preprocessed_are_used_again(preprocessed, capsys):
    write_fingerprint(preprocessed, 40, 40)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    plan_experiment_dataset(7)
    (preprocessed / "nnUNetPlans_2d").mkdir()
    (preprocessed / "nnUNetPlans_2d" / "case0.b2nd").touch()
    assert planned(preprocessed)["data_identifier"] == "nnUNetPlans_2d"
    assert "nnUNetv2_preprocess" not in capsys.readouterr().out
    assert planned(preprocessed)["data_identifier"] == "nnUNetPlans_2d", "planned again, it is the same"

    # unless they were made for another spacing
    plan_experiment_dataset(7, overwrite_target_spacing=(999.0, 2.0, 2.0))
    assert planned(preprocessed)["data_identifier"] == f"{PLANS}_2d"
    assert f"nnUNetv2_preprocess -d 7 -plans_name {PLANS} -c 2d" in capsys.readouterr().out


def test_data_have_a_folder_of_their_own_before_nnunet_has_planned(preprocessed):
    """nnU-Net could plan another spacing later, and would write into the folder of its own plans."""
    write_fingerprint(preprocessed, 40, 40)
    assert planned(preprocessed)["data_identifier"] == f"{PLANS}_2d"


@pytest.fixture
def trained(preprocessed, tmp_path, monkeypatch):
    """Plans for S, and the folder of a network that was trained with them."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    write_fingerprint(preprocessed, 40, 40)
    planned(preprocessed, "--variant", "S")
    folder = tmp_path / "results" / DATASET / f"nnUNetTrainerMambaMIS__{PLANS}__2d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_latest.pth").touch()
    return folder


def replan_variant(folder):
    return ["--variant", "B"]


def replan_patch(folder):
    write_fingerprint(folder, 200, 200)
    return ["--variant", "S"]


@pytest.mark.parametrize("change", [replan_variant, replan_patch])
def test_plans_that_a_network_was_trained_with_are_not_changed(trained, preprocessed, capsys, change):
    path = preprocessed / f"{PLANS}.json"
    before = path.read_bytes()
    arguments = change(preprocessed)
    assert main(["plan", "-d", "7", *arguments]) == 1
    message = capsys.readouterr().err
    assert f"{trained} was trained with it" in message and "--plans-name" in message
    assert path.read_bytes() == before

    assert main(["plan", "-d", "7", *arguments, "--plans-name", "other"]) == 0
    assert json.loads((preprocessed / "other.json").read_text())["plans_name"] == "other"
    assert "nnUNetv2_train 7 2d 0 -tr nnUNetTrainerMambaMIS -p other" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_plans_that_stay_as_they_are_may_be_made_again(trained, preprocessed):
    planned(preprocessed, "--variant", "S")


def test_plans_that_no_network_was_trained_with_are_replaced(preprocessed):
    write_fingerprint(preprocessed, 40, 40)
    for variant in "SB":
        assert planned(preprocessed, "--variant", variant)["architecture"]["arch_kwargs"]["variant"] == variant


def test_plans_of_another_network_are_not_replaced(preprocessed, capsys):
    write_fingerprint(preprocessed, 40, 40)
    path = preprocessed / "nnUNetResEncUNetMPlans.json"
    path.write_text(json.dumps({"configurations": {"2d": {"architecture": {"network_class_name": "a.ResEncUNet"}}}}))
    before = path.read_bytes()
    assert main(["plan", "-d", "7", "--plans-name", path.stem]) == 1
    assert f"{path} is of another network" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_3d_dataset_gets_the_2d_configuration_alone(raw, tmp_path, monkeypatch):
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    folder = raw / DATASET
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for case in range(3):
        mask = np.zeros((20, 48, 40), np.uint8)
        mask[5:15, 10:30, 10:30] = 1
        for name, array in ((f"imagesTr/case{case}_0000", mask * 100.0 + case), (f"labelsTr/case{case}", mask)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{name}.nii.gz"))
    write_dataset_json(folder, 3, ".nii.gz")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    extract_fingerprint_dataset(7, num_processes=1, verbose=False, show_progress_bar=False)
    assert main(["plan", "-d", "7"]) == 0
    plans = json.loads((tmp_path / "preprocessed" / DATASET / f"{PLANS}.json").read_text())
    assert list(plans["configurations"]) == ["2d"]
    assert plans["configurations"]["2d"]["patch_size"] == [64, 64]


def test_own_configurations_in_the_plans_stay(preprocessed):
    write_fingerprint(preprocessed, 40, 40)
    planned(preprocessed)
    path = preprocessed / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["mine"] = {"inherits_from": "2d", "batch_size": 3}
    path.write_text(json.dumps(plans))
    planned(preprocessed)
    assert json.loads(path.read_text())["configurations"]["mine"]["batch_size"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "7"], "nnUNetv2_plan_and_preprocess -d 7 -c 2d"),
        (["-d", "8"], "Could not find a dataset with the ID 8"),
        (["-d", "Dataset008_Absent"], "Dataset008_Absent/dataset.json does not exist"),
        (["-d", "discs"], "-d discs: neither an id nor a name"),
        (["-d", "7", "--gpu-memory", "0"], "--gpu-memory 0: it must be above 0"),
        (["-d", "7", "--plans-name", "../mine"], "--plans-name ../mine: letters, digits"),
        (["-d", "7", "--plans-name", "my__plans"], "--plans-name my__plans: letters, digits"),
        (["-d", "7", "--plans-name", "nnUNetPlans"], "nnU-Net's own plans have this name"),
    ],
    ids=["no fingerprint", "no such id", "no such name", "neither", "no memory", "no name", "parted", "nnU-Net's"],
)
def test_what_cannot_be_planned_is_one_message(preprocessed, capsys, arguments, message):
    assert main(["plan", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(preprocessed.iterdir())


def test_folder_that_is_not_set_is_one_message(preprocessed, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main(["plan", "-d", "7"]) == 1
    assert "nnUNet_preprocessed is not set" in capsys.readouterr().err


def test_memory_for_nothing_is_one_message(preprocessed, capsys):
    write_fingerprint(preprocessed, 40, 40)
    assert main(["plan", "-d", "7", "--gpu-memory", "0.1"]) == 1
    assert "--gpu-memory 0.1: training takes at least" in capsys.readouterr().err


def test_splits_that_contradict_each_other_are_one_message(preprocessed, capsys):
    write_fingerprint(preprocessed, 40, 40)
    raw = Path(os.environ["nnUNet_raw"]) / DATASET
    for folder, validation in ((raw, "case0"), (preprocessed, "case1")):
        split = {"train": ["case2", "case3"], "val": [validation]}
        (folder / "splits_final.json").write_text(json.dumps([split]))
    assert main(["plan", "-d", "7"]) == 1
    assert f"splits_final.json of {DATASET} differs" in capsys.readouterr().err


# the memory model


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (100, 40)], ids=str)
@pytest.mark.parametrize("variant", ["S", "B", "L"])
def test_parameters_are_counted_as_the_network_has_them(variant, size):
    with torch.device("meta"):
        network = MambaMIS(3, 4, size, variant=variant, deep_supervision=True)
    assert parameters(variant, size, 3, 4) == sum(p.numel() for p in network.parameters())


def bytes_at_autograd(device: str, variant: str, size: tuple[int, int], batch: int) -> float:
    """Bytes kept for backward for an image, counted at autograd's hooks; a GPU's need none, as tensors are fake."""
    with FakeTensorMode(), torch.device(device):
        network = MambaMIS(3, 2, size, variant=variant, deep_supervision=True)
        x = torch.empty(batch, 3, *size)
        mine = {p.untyped_storage()._cdata for p in network.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in mine:
                kept[storage._cdata] = storage  # while it lives, no other has its address
            return tensor

        # torch.autocast leaves CUDA alone where there is none
        torch.set_autocast_enabled("cuda", device == "cuda")
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                network(x)
        finally:
            torch.set_autocast_enabled("cuda", False)
    return sum(storage.nbytes() for storage in kept.values()) / batch


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("variant", "size"), [("S", (192, 512)), ("B", (256, 256)), ("B", (512, 512)), ("L", (256, 128))], ids=str
)
def test_model_counts_what_autograd_keeps(device, variant, size, monkeypatch):
    if device == "cuda":  # which there need not be
        use_backend("triton", monkeypatch)
    counted = bytes_at_autograd(device, variant, size, batch=4)
    assert kept_bytes(device, variant, size) == pytest.approx(counted, rel=0.03)


def measured_peak(device: str, variant: str, size: tuple[int, int], batch: int) -> int:
    """Peak of training steps in a process of their own."""
    command = [sys.executable, REPOSITORY / "benchmarks" / "memory.py", device, variant, *map(str, (*size, batch))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")
@pytest.mark.parametrize(
    ("variant", "size", "batch"),
    [("S", (128, 128), 8), ("B", (256, 256), 4), ("L", (128, 128), 4)],
    ids=str,
)
def test_model_agrees_with_the_peak_on_a_cpu(variant, size, batch):
    assert training_bytes("cpu", variant, size, batch) == pytest.approx(
        measured_peak("cpu", variant, size, batch), rel=0.2
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("variant", "size", "batch"), [("S", (256, 256), 8), ("B", (256, 256), 12), ("B", (512, 512), 4)], ids=str
)
def test_model_agrees_with_the_peak_on_a_gpu(variant, size, batch):
    assert training_bytes("cuda", variant, size, batch) == pytest.approx(
        measured_peak("cuda", variant, size, batch), rel=0.2
    )


def test_plans_that_cannot_be_written_leave_those_that_were_there(preprocessed, capsys):
    write_fingerprint(preprocessed, 70, 90)
    planned(preprocessed)
    before = (preprocessed / f"{PLANS}.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a disk that is full
        assert main(["plan", "-d", "7"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "cannot be written" in capsys.readouterr().err
    assert (preprocessed / f"{PLANS}.json").read_bytes() == before
    assert not list(preprocessed.glob("*.partial"))


def test_plans_that_are_cut_off_are_named(preprocessed, capsys):
    write_fingerprint(preprocessed, 70, 90)
    path = preprocessed / f"{PLANS}.json"
    path.write_text('{"configurations": {')
    assert main(["plan", "-d", "7"]) == 1
    assert f"{path} is no whole plans file" in capsys.readouterr().err

"""nnU-Net's commands plan, preprocess, train, validate and predict datasets with every kind of labels and images."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_S
from support.images import disc
from support.nnunet_workplace import Dataset, write_image
from support.trainer_in_process import make_trainer

GREY, VOLUME, REGIONS = 21, 22, 23

pytestmark = pytest.mark.slow


def discs(seed: int, height: int = 32, width: int = 30) -> np.ndarray:
    """Return the labels of a disc (1) with a smaller disc inside (2)."""
    rng = np.random.default_rng(seed)
    centre = height / 2 + rng.integers(-3, 4), width / 2 + rng.integers(-3, 4)
    radius = rng.uniform(0.28, 0.36) * min(height, width)
    return disc(*centre, radius, (height, width)) + disc(*centre, 0.6 * radius, (height, width))


def picture(seed: int, labels: np.ndarray, brightness: tuple[int, ...] = (110, 200, 20)) -> np.ndarray:
    """Return a noisy picture with a different brightness for each label."""
    noise = np.random.default_rng(seed).integers(-15, 16, labels.shape)
    return (np.array(brightness)[labels] + noise).astype(np.uint8)


@pytest.fixture(scope="session")
def grey(nnunet) -> Dataset:
    """A dataset of one-channel PNGs with two classes; a quarter of each training image has the ignore label.

    One image is smaller than the patch, and one is only one pixel high.
    """
    cases = {}
    sizes = {0: (20, 24), 1: (1, 30)}
    for seed in range(8):
        truth = discs(seed, *sizes.get(seed, (32, 30)))
        labels = truth.copy()
        if seed < 6:
            labels[:, labels.shape[1] * 3 // 4 :] = 3
        cases[f"case{seed}"] = (picture(seed, truth)[None], labels)
    return nnunet.add(Dataset(GREY, cases, {"background": 0, "polyp": 1, "vessel": 2, "ignore": 3}))


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return five slices, stacked along the last axis, and their labels."""
    labels = np.stack([discs(seed + i) for i in range(5)], -1)
    return picture(seed, labels), labels


@pytest.fixture(scope="session")
def volumes(nnunet) -> Dataset:
    """A dataset of one-channel NIfTI volumes with two classes, whose coarse axis is not the first."""
    cases = {f"case{seed}": (image[None], labels) for seed in range(5) for image, labels in [volume(10 * seed)]}
    labels = {"background": 0, "liver": 1, "tumour": 2}
    return nnunet.add(Dataset(VOLUME, cases, labels, ".nii.gz", spacing=(1.0, 1.0, 5.0)))


def five_channels(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume and labels; the first channel shows the outer disc, the last the inner one, the others noise."""
    labels = np.stack([discs(seed), discs(seed + 1)])
    channels = [picture(seed, labels, (30, 200, 200))]
    channels += [picture(seed + i, labels, (100, 100, 100)) for i in (1, 2, 3)]
    channels.append(picture(seed + 4, labels, (30, 30, 200)))
    return np.stack(channels), labels


@pytest.fixture(scope="session")
def regions(nnunet) -> Dataset:
    """A dataset of five-channel volumes with two regions, the whole tumour and its core."""
    cases = {f"case{seed}": five_channels(10 * seed) for seed in range(5)}
    labels = {"background": 0, "whole tumour": [1, 2], "core": 2}
    further = {"regions_class_order": [1, 2]}
    return nnunet.add(Dataset(REGIONS, cases, labels, ".nii.gz", spacing=(5.0, 1.0, 1.0), further=further))


@pytest.fixture(scope="session")
def learned(nnunet, grey, volumes, regions) -> Path:
    """The results folder, after training fold 0 of each dataset long enough to segment bright discs."""
    splits = [{"train": [f"case{i}" for i in range(6)], "val": ["case6", "case7"]}]
    (nnunet.preprocessed / grey.name / "splits_final.json").write_text(json.dumps(splits))
    nnunet.train_all([(number, 0, "Learning") for number in (GREY, VOLUME, REGIONS)], "--npz")
    return nnunet.results


def dice(nnunet, number: int) -> dict[str, float]:
    """Return the mean Dice of each class in the validation of fold 0."""
    summary = json.loads((nnunet.model(number, "Learning") / "fold_0" / "validation" / "summary.json").read_text())
    return {label: metrics["Dice"] for label, metrics in summary["mean"].items()}


def overlap(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())


def probabilities(nnunet, number: int) -> np.ndarray:
    file = next((nnunet.model(number, "Learning") / "fold_0" / "validation").glob("*.npz"))
    return np.load(file)["probabilities"]


@pytest.mark.feature("Labels", "training images smaller than the patch, or one pixel high")
@pytest.mark.feature("Labels", "grey PNG, one channel")
@pytest.mark.feature("Labels", "several classes")
def test_several_classes_and_an_ignore_label_are_learned(nnunet, learned):
    scores = dice(nnunet, GREY)
    assert set(scores) == {"1", "2"} and min(scores.values()) > 0.5, scores


@pytest.mark.feature("Labels", "`ignore` label: excluded from learning, never predicted")
def test_ignore_label_is_never_predicted(nnunet, learned):
    assert len(probabilities(nnunet, GREY)) == 3
    for file in (nnunet.model(GREY, "Learning") / "fold_0" / "validation").glob("*.png"):
        assert set(np.unique(imageio.imread(file))) <= {0, 1, 2}


@pytest.mark.feature("Labels", "configuration `2d` of a 3D dataset, slices along either axis")
def test_2d_configuration_of_a_3d_dataset_is_learned(nnunet, learned):
    scores = dice(nnunet, VOLUME)
    assert set(scores) == {"1", "2"} and min(scores.values()) > 0.5, scores


@pytest.mark.feature("Labels", "configuration `2d` of a 3D dataset, slices along either axis")
@pytest.mark.feature("Labels", "five channels, one file each")
@pytest.mark.feature("Labels", "region-based training (`regions_class_order`)")
def test_regions_of_five_channels_are_learned(nnunet, learned):
    scores = dice(nnunet, REGIONS)
    assert set(scores) == {"(1, 2)", "2"} and min(scores.values()) > 0.5, scores


def test_benchmark_scores_classes_and_regions_as_nnunet_does(nnunet, learned, tmp_path, monkeypatch):
    nnunet.set_here(monkeypatch)
    datasets = [str(number) for number in (GREY, VOLUME, REGIONS)]
    command = ["benchmark", "report", "-d", *datasets, "--trainers", "Learning", "-o", str(tmp_path)]
    assert main(command) == 0
    with (tmp_path / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number in (GREY, VOLUME, REGIONS):
        means = {}
        for row in rows:
            if row["dataset"].startswith(f"Dataset{number:03d}"):
                means.setdefault(row["class"], []).append(float(row["dice"] or "nan"))
        ours = [np.nanmean(values) for values in means.values()]
        assert ours == pytest.approx(list(dice(nnunet, number).values()), rel=1e-5)
    text = (tmp_path / "report.md").read_text()
    assert "Mean of classes:" in text and "whole tumour" in text


def test_benchmark_reports_measured_costs(nnunet, learned, tmp_path, monkeypatch):
    nnunet.set_here(monkeypatch)
    command = ["benchmark", "report", "-d", str(GREY), "--trainers", "Learning", "--cost", "cpu"]
    assert main([*command, "-o", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    network = r"parameters, millions \| FLOPs per patch, billions \| "
    machine = r"peak training memory, GB<br>on (.* threads?.*) \| seconds to predict an image<br>on \1 \|"
    header = re.search(network + machine, text)
    assert re.search(r"\| Learning \|( [\d.]+ \|){4,}", text[header.end() :])


@pytest.mark.feature("Labels", "region-based training (`regions_class_order`)")
def test_regions_have_overlapping_probabilities(nnunet, learned):
    whole, core = probabilities(nnunet, REGIONS)
    assert ((whole > 0.5) & (core > 0.5)).any()


@pytest.mark.feature("Labels", "NIfTI: a prediction has the size, spacing and origin of its image")
def test_prediction_of_a_volume_has_its_geometry(nnunet, learned, volumes, tmp_path):
    image, labels = volume(77)
    image, labels = (np.ascontiguousarray(a[:29, 3:, :3]) for a in (image, labels))
    (tmp_path / "new").mkdir()
    write_image(tmp_path / "new", "unseen", image[None], volumes)
    nnunet.predict(VOLUME, "Learning", tmp_path / "new", tmp_path / "out", "-f", 0)
    given = sitk.ReadImage(tmp_path / "new" / "unseen_0000.nii.gz")
    predicted = sitk.ReadImage(tmp_path / "out" / "unseen.nii.gz")
    for geometry in (given, predicted):
        assert geometry.GetSize() == (3, 27, 29)
    assert predicted.GetSpacing() == pytest.approx(given.GetSpacing())
    assert predicted.GetOrigin() == pytest.approx(given.GetOrigin())
    prediction = sitk.GetArrayFromImage(predicted)
    assert overlap(prediction > 0, labels > 0) > 0.5


@pytest.mark.feature("Labels", "region-based training (`regions_class_order`)")
def test_prediction_of_five_channels_uses_regions_in_their_order(nnunet, learned, regions, tmp_path):
    image, labels = five_channels(77)
    (tmp_path / "new").mkdir()
    write_image(tmp_path / "new", "unseen", image, regions)
    nnunet.predict(REGIONS, "Learning", tmp_path / "new", tmp_path / "out", "-f", 0)
    prediction = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out" / "unseen.nii.gz"))
    assert min(overlap(prediction > 0, labels > 0), overlap(prediction == 2, labels == 2)) > 0.5


@pytest.mark.feature("Labels", "`ignore` label: no loss at any scale of deep supervision")
def test_loss_ignores_pixels_with_the_ignore_label(nnunet, grey, monkeypatch):
    nnunet.set_here(monkeypatch)
    trainer = make_trainer(nnUNetTrainerMambaMIS_S, nnunet.preprocessed / grey.name)
    trainer.initialize()
    height, width = trainer.configuration_manager.patch_size
    target = torch.randint(0, 3, (2, 1, height, width)).float()
    target[..., width // 2 :] = 3
    outputs = trainer.network(torch.randn(2, 1, height, width))
    targets = [target[..., :: round(height / y.shape[2]), :: round(width / y.shape[3])] for y in outputs]
    noise = [5 * torch.randn_like(y) for y in outputs]
    changed = [torch.where(t == 3, y + n, y) for y, n, t in zip(outputs, noise, targets, strict=True)]
    torch.testing.assert_close(trainer.loss(changed, targets), trainer.loss(outputs, targets))

"""Labelled images to test a model on: the test sets of its dataset, and other datasets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.benchmark.label_maps import labelled_cases
from nnunet_mamba_mis.nnunet.dataset import Dataset
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE, folder, is_dataset_name
from nnunet_mamba_mis.nnunet.records import read_record
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import shortened

TRAINING_PART = "imagesTr"
# folder of predictions by folds 0 and 1: test_folds_0_1
_ENSEMBLE = re.compile(r"test_folds_([0-9]{1,9}(?:_[0-9]{1,9})*)")
_PART = re.compile(r"images(Tr|Ts(?:_.+)?)")


@dataclass(frozen=True)
class TestSet:
    """Images and labels in nnUNet_raw.

    Args:
        dataset: nnU-Net's full name of the dataset that contains the images.
        part: Folder of the images: imagesTs, imagesTs_NAME, or imagesTr of a dataset other than the model's.
    """

    __test__ = False  # pytest would collect a class with this name

    dataset: str
    part: str

    def __str__(self) -> str:
        return f"{self.dataset} {self.part}"

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return folder("nnUNet_raw") / self.dataset / self.part

    @property
    def labels(self) -> Path:
        """Folder of the ground truth."""
        return self.images.with_name(self.labels_part)

    @property
    def labels_part(self) -> str:
        """Name of the folder of the ground truth."""
        return self.part.replace("images", "labels", 1)


def predictions_folder(model: Path, folds: Sequence[int], test_set: TestSet) -> Path:
    """Return the folder of the predictions that the ensemble of a model's folds makes on a test set."""
    return model / f"test_folds_{'_'.join(map(str, folds))}" / test_set.dataset / test_set.part


def parse_predictions_folder(predictions: Path) -> tuple[tuple[int, ...], TestSet] | None:
    """Return the folds and test set of a folder of predictions, or None for any other folder."""
    ensemble, dataset, part = predictions.parts[-3:]
    folds = _ENSEMBLE.fullmatch(ensemble)
    if folds is None or not is_dataset_name(dataset) or not _PART.fullmatch(part):
        return None
    return tuple(map(int, folds[1].split("_"))), TestSet(dataset, part)


def find_test_sets(
    raw: Path, description: Dataset, dataset: str, own: bool, others: Sequence[str], problems: list[str]
) -> list[TestSet]:
    """Find labelled images to test a model on.

    Args:
        raw: nnUNet_raw.
        description: The dataset.json that the model is trained with.
        dataset: The dataset that the model is trained on.
        own: Whether to include the test sets of this dataset.
        others: Other datasets, whose training images and test sets to include.
        problems: Receives a description of everything that cannot be used.
    """
    test_sets = []
    if own:
        test_sets = [TestSet(dataset, part) for part in _parts(raw / dataset) if part != TRAINING_PART]
        if not test_sets:
            folders = "imagesTs or imagesTs_NAME with labelsTs or labelsTs_NAME"
            problems.append(f"--test-sets: {dataset} has no {folders} in {raw / dataset}")
    for other in others:
        if other == dataset:
            problems.append(f"--test-on: {other} is the training dataset; predict its test sets with --test-sets")
            continue
        parts = _parts(raw / other)
        if not parts:
            problems.append(f"--test-on: {other} has no imagesTr with labelsTr in {raw / other}")
        problems += [f"--test-on: {difference}" for difference in _differences(raw, description, dataset, other)]
        test_sets += [TestSet(other, part) for part in parts]
    for test_set in test_sets:
        problems += _unpaired(raw / test_set.dataset, test_set, description.file_ending)
    return test_sets


def _parts(dataset: Path) -> list[str]:
    """Return the names of the folders of images for which a folder of labels exists."""
    parts = (path.name for path in sorted(dataset.glob("imagesT*")) if _PART.fullmatch(path.name))
    return [part for part in parts if (dataset / TestSet(dataset.name, part).labels_part).is_dir()]


def _unpaired(dataset: Path, test_set: TestSet, ending: str) -> Iterator[str]:
    """Yield images without labels, and labels without images, which would make nnU-Net fail after all training."""
    labels = set(labelled_cases(dataset / test_set.labels_part, ending))
    channel = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    matches = (channel.fullmatch(file.name) for file in (dataset / test_set.part).iterdir())
    images = {match[1] for match in matches if match}
    if not labels and not images:
        yield f"{test_set}: no image ends with _0000{ending}"
    if unlabelled := sorted(images - labels):
        yield f"{test_set}: images without labels: {shortened(unlabelled)}"
    if missing := sorted(labels - images):
        yield f"{test_set}: labels without images: {shortened(missing)}"


def _differences(raw: Path, ours: Dataset, dataset: str, other: str) -> Iterator[str]:
    """Yield the reasons why a model trained on one dataset cannot be tested on another.

    Without this check, nnU-Net would predict wrongly or fail late.
    """
    try:
        theirs = read_record(raw / other / DATASET_FILE, Dataset)
    except UserError as error:
        yield str(error)
        return
    for key in ("labels", "file_ending", "channel_names"):
        here, there = getattr(ours, key), getattr(theirs, key)
        if here != there:
            yield f"{key} in {DATASET_FILE} is {here} in {dataset}, but {there} in {other}"

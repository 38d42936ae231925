"""Labelled images that a model was not trained on: test sets of its dataset, and other datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw

# folder of predictions with the folds 0 and 1: test_folds_0_1
ENSEMBLE = re.compile(r"test_folds_(\d+(?:_\d+)*)")
TRAINING_PART = "imagesTr"
_DATASET = re.compile(r"Dataset\d{3}_.+")
_PART = re.compile(r"images(Tr|Ts(?:_.+)?)")


@dataclass(frozen=True)
class TestSet:
    """Images and labels in nnUNet_raw.

    Args:
        dataset: nnU-Net's full name of the dataset that they lie in.
        part: folder of the images: imagesTs, imagesTs_NAME, or imagesTr of another dataset than the model's.
    """

    __test__ = False  # pytest takes names that begin so for its own

    dataset: str
    part: str

    @classmethod
    def of_folder(cls, dataset: str, part: str) -> TestSet | None:
        """The test set of folders of these names, or None if they are none of a test set."""
        return cls(dataset, part) if _DATASET.fullmatch(dataset) and _PART.fullmatch(part) else None

    def __str__(self) -> str:
        return f"{self.dataset} {self.part}"

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return Path(nnUNet_raw) / self.dataset / self.part

    @property
    def labels(self) -> Path:
        """Folder of the ground truth."""
        return self.images.with_name(self.labels_part)

    @property
    def labels_part(self) -> str:
        """Name of the folder of the ground truth."""
        return self.part.replace("images", "labels", 1)


def find_test_sets(
    raw: Path, description: Mapping[str, Any], dataset: str, own: bool, others: Sequence[str], problems: list[str]
) -> list[TestSet]:
    """Find labelled images to test a model on.

    Args:
        raw: nnUNet_raw.
        description: dataset.json that the model is trained with.
        dataset: that the model is trained on.
        own: whether to take its own test sets.
        others: further datasets: their training images and their test sets.
        problems: what is wrong is added, in words.
    """
    found = []
    if own:
        found = [TestSet(dataset, part) for part in _parts(raw / dataset) if part != TRAINING_PART]
        if not found:
            folders = "imagesTs or imagesTs_NAME with labelsTs or labelsTs_NAME"
            problems.append(f"--test-sets: {dataset} has no {folders} in {raw / dataset}")
    for other in others:
        if other == dataset:
            problems.append(f"--test-on: {other} is trained on; its test sets are predicted with --test-sets")
            continue
        parts = _parts(raw / other)
        if not parts:
            problems.append(f"--test-on: {other} has no imagesTr with labelsTr in {raw / other}")
        problems += [f"--test-on: {difference}" for difference in _differences(raw, description, dataset, other)]
        found += [TestSet(other, part) for part in parts]
    for one in found:
        problems += _unpaired(raw / one.dataset, one, description["file_ending"])
    return found


def labelled_cases(labels: Path, ending: str) -> list[str]:
    """Cases of a folder of label maps."""
    return sorted(file.name.removesuffix(ending) for file in labels.glob(f"*{ending}"))


def _parts(folder: Path) -> list[str]:
    """Folders of images that have labels."""
    sets = (TestSet(folder.name, path.name) for path in sorted(folder.glob("imagesT*")) if _PART.fullmatch(path.name))
    return [one.part for one in sets if (folder / one.labels_part).is_dir()]


def _unpaired(folder: Path, test_set: TestSet, ending: str) -> Iterator[str]:
    """Images without labels and the other way round, for which nnU-Net would fail after all the trainings."""
    labels = set(labelled_cases(folder / test_set.labels_part, ending))
    channel = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    matches = (channel.fullmatch(file.name) for file in (folder / test_set.part).iterdir())
    images = {match[1] for match in matches if match}
    if not labels and not images:
        yield f"{test_set}: there is no image that ends with _0000{ending}"
    for one, other, what in ((images, labels, "labels"), (labels, images, "images")):
        if lacking := sorted(one - other):
            yield f"{test_set}: there are no {what} of {', '.join(lacking[:5])}{' and more' * (len(lacking) > 5)}"


def _differences(raw: Path, ours: Mapping[str, Any], dataset: str, other: str) -> Iterator[str]:
    """Why a model of a dataset does not fit another: nnU-Net would predict what nobody asked for, or fail late."""
    file = raw / other / "dataset.json"
    try:
        theirs = json.loads(file.read_text())
        for key in ("labels", "file_ending", "channel_names"):
            if ours[key] != theirs[key]:
                yield f"{key} in dataset.json is {ours[key]} in {dataset} and {theirs[key]} in {other}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{file} cannot be used: {error!r}"

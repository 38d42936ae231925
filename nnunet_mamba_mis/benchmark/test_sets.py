"""Labelled images that a model was not trained on: test sets of its dataset, and other datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
        from nnunetv2.paths import nnUNet_raw

        return Path(nnUNet_raw) / self.dataset / self.part

    @property
    def labels(self) -> Path:
        """Folder of the ground truth."""
        return self.images.with_name(self.labels_part)

    @property
    def labels_part(self) -> str:
        """Name of the folder of the ground truth."""
        return self.part.replace("images", "labels", 1)


def find_test_sets(raw: Path, dataset: str, own: bool, others: list[str], problems: list[str]) -> list[TestSet]:
    """Find labelled images to test a model on.

    Args:
        raw: nnUNet_raw.
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
        problems += [f"--test-on: {difference}" for difference in _differences(raw, dataset, other)]
        found += [TestSet(other, part) for part in parts]
    return found


def _parts(folder: Path) -> list[str]:
    """Folders of images that have labels."""
    sets = (TestSet(folder.name, path.name) for path in sorted(folder.glob("imagesT*")) if _PART.fullmatch(path.name))
    return [one.part for one in sets if (folder / one.labels_part).is_dir()]


def _differences(raw: Path, dataset: str, other: str) -> Iterator[str]:
    """Why a model of a dataset does not fit another: nnU-Net would predict what nobody asked for, or fail late."""
    try:
        ours, theirs = (json.loads((raw / name / "dataset.json").read_text()) for name in (dataset, other))
        for key in ("labels", "file_ending"):
            if ours[key] != theirs[key]:
                yield f"{key} in dataset.json is {ours[key]} in {dataset} and {theirs[key]} in {other}"
        channels = [len(description["channel_names"]) for description in (ours, theirs)]
    except (OSError, ValueError, KeyError) as error:
        yield f"dataset.json of {dataset} or {other} in {raw} cannot be used: {error!r}"
        return
    if channels[0] != channels[1]:
        yield f"{dataset} has {channels[0]} channels and {other} {channels[1]}"

"""Write what nnU-Net's cross-validation leaves behind, without training: ground truth, predictions and logs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_mamba_mis.cli.main import main
from support.images import disc

CASES = [f"case{i}" for i in range(8)]
STOCK, OURS = "nnUNetTrainer", "nnUNetTrainerMambaMIS"


@dataclass
class Place:
    """nnU-Net's three folders, with one dataset.

    Args:
        root: Folder that holds the three folders.
        folds: Validation cases of each fold.
        name: Name of the dataset.
        labels: Labels as in dataset.json.
    """

    root: Path
    folds: Sequence[Sequence[str]]
    name: str = "Dataset007_Discs"
    labels: Mapping[str, object] = field(default_factory=lambda: {"background": 0, "polyp": 1})

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.name

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def variables(self) -> dict[str, str]:
        names = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        return {variable: str(self.root / folder) for variable, folder in names.items()}

    @property
    def cases(self) -> list[str]:
        return [case for fold in self.folds for case in fold]

    def write_dataset(self, truths: Mapping[str, np.ndarray], groups: Sequence[Sequence[str]] = ()) -> None:
        """Write images, ground truth, splits, and the groups as `mamba_mis convert` records them."""
        for folder in (self.raw / "imagesTr", self.preprocessed / "gt_segmentations", self.results):
            folder.mkdir(parents=True, exist_ok=True)
        for number, (case, truth) in enumerate(truths.items()):
            noise = np.random.default_rng(number).normal(0, 6, (*truth.shape, 3))
            red = np.array([150, 80, 70]) + 40 * (truth[..., None] > 0) + noise
            imageio.imwrite(self.raw / "imagesTr" / f"{case}_0000.png", red.clip(0, 255).astype(np.uint8))
            imageio.imwrite(self.preprocessed / "gt_segmentations" / f"{case}.png", truth.astype(np.uint8))
        everything = self.cases
        splits = [{"train": [c for c in everything if c not in fold], "val": list(fold)} for fold in self.folds]
        description = {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": dict(self.labels),
            "numTraining": len(everything),
            "file_ending": ".png",
        }
        for folder in (self.raw, self.preprocessed):
            (folder / "dataset.json").write_text(json.dumps(description))
        (self.preprocessed / "splits_final.json").write_text(json.dumps(splits))
        report = {"splits": {"rule": "as given", "groups": [list(group) for group in groups]}}
        (self.raw / "conversion_report.json").write_text(json.dumps(report))

    def write_fold(
        self,
        trainer: str,
        fold: int,
        predictions: Mapping[str, np.ndarray],
        *,
        plans: str = "nnUNetPlans",
        seed: str = "",
        settings: Mapping[str, object] = {},
        epochs: int = 3,
    ) -> Path:
        """Write a fold as nnUNetv2_train does, without checkpoints, and return its folder."""
        root = self.results / f"seed_{seed}" if seed else self.results
        folder = root / self.name / f"{trainer}__{plans}__2d" / f"fold_{fold}"
        validation = folder / "validation"
        validation.mkdir(parents=True)
        for case, prediction in predictions.items():
            imageio.imwrite(validation / f"{case}.png", prediction.astype(np.uint8))
        listed = [{"prediction_file": str(validation / f"{case}.png")} for case in predictions]
        (validation / "summary.json").write_text(json.dumps({"metric_per_case": listed}))
        planned = {"patch_size": [48, 64], "batch_size": 2, "spacing": [1.0, 1.0]}
        plan = {"plans_name": plans, "configurations": {"2d": planned}}
        (folder.parent / "plans.json").write_text(json.dumps(plan))
        debug = {"num_epochs": str(epochs), "num_iterations_per_epoch": "250", "batch_size": "2", "device": "cpu"}
        debug |= {"hostname": "workstation", "configuration_manager": str(planned), "optimizer": "SGD (\nlr: 0.01"}
        (folder / "debug.json").write_text(json.dumps(debug | {name: str(value) for name, value in settings.items()}))
        (folder / "training_log_2026_1_1_00_00_00.txt").write_text("".join(map(log_of_epoch, range(epochs))))
        return folder

    def write_test_set(self, dataset: str, part: str, truths: Mapping[str, np.ndarray], **recorded: object) -> None:
        """Write images and ground truth of a test set, in the model's own dataset or in another one.

        Args:
            dataset: Dataset that holds the test set.
            part: Ts_NAME for imagesTs_NAME and labelsTs_NAME, or Tr for imagesTr and labelsTr.
            truths: Label map of each case.
            recorded: Content of another dataset's conversion_report.json.
        """
        folder = self.root / "raw" / dataset
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
        for case, truth in truths.items():
            imageio.imwrite(folder / f"images{part}" / f"{case}_0000.png", np.full((*truth.shape, 3), 90, np.uint8))
            imageio.imwrite(folder / f"labels{part}" / f"{case}.png", truth.astype(np.uint8))
        if recorded:
            (folder / "conversion_report.json").write_text(json.dumps(recorded))

    def write_test(
        self, trainer: str, dataset: str, part: str, predictions: Mapping[str, np.ndarray], folds: str = "0_1"
    ) -> Path:
        """Write predictions of a test set as `mamba_mis benchmark run` does, and return their folder."""
        model = self.results / self.name / f"{trainer}__nnUNetPlans__2d"
        folder = model / f"test_folds_{folds}" / dataset / f"images{part}"
        folder.mkdir(parents=True)
        for case, prediction in predictions.items():
            imageio.imwrite(folder / f"{case}.png", prediction.astype(np.uint8))
        (folder / "dataset.json").write_text(json.dumps({"labels": dict(self.labels), "file_ending": ".png"}))
        (folder / "summary.json").write_text("{}")
        return folder


def log_of_epoch(number: int, seconds: float = 12.5) -> str:
    lines = [
        f"Epoch {number} ",
        "Current learning rate: 0.01 ",
        f"train_loss {-0.9 + 0.5 / (number + 1):.4f} ",
        f"val_loss {-0.85 + 0.6 / (number + 1):.4f} ",
        f"Pseudo dice [np.float32({0.95 - 0.5 / (number + 1):.4f})] ",
        f"Epoch time: {seconds} s ",
    ]
    return "".join(f"2026-01-01 00:00:00.000000: {line}\n" for line in lines)


def discs(cases: Sequence[str], seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Return the row, column and radius of a random disc for each case."""
    random = np.random.default_rng(seed)
    return {case: (random.uniform(16, 32), random.uniform(20, 44), random.uniform(6, 14)) for case in cases}


def predicted(
    truths: Mapping[str, tuple[float, float, float]], cases: Sequence[str], error: float, seed: int
) -> dict[str, np.ndarray]:
    """Return masks of the cases' discs, each shifted randomly by about `error` pixels."""
    random = np.random.default_rng(seed)
    shifts = {case: random.normal(0, error, 2) for case in truths}
    return {
        case: disc(truths[case][0] + shifts[case][0], truths[case][1] + shifts[case][1], truths[case][2])
        for case in cases
    }


# discs in the cases of the dataset, and in those of a test set
SHAPES = discs(CASES)
FAR = {f"far{i}": shape for i, shape in enumerate(discs([f"far{i}" for i in range(7)], seed=5).values())}


def write_folds(place: Place, trainer: str, error: float, random: int = 0, **options) -> None:
    """Write all folds of a trainer whose predictions are off by about `error` pixels."""
    for number, fold in enumerate(place.folds):
        place.write_fold(trainer, number, predicted(SHAPES, fold, error, random), **options)


@contextmanager
def undrawn() -> Iterator[None]:
    """Create figures without drawing them into files, as drawing takes three quarters of a report's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda *_, **__: None)
        yield


def report(place: Place, *arguments: object, dataset: str = "7", pictures: str = "") -> str:
    """Run `mamba_mis benchmark report`, and return report.md.

    Args:
        place: Folders with results.
        arguments: Further arguments of the command.
        dataset: Name or number of the dataset.
        pictures: "drawn" or "undrawn" (see `undrawn`); "" for a report without pictures of cases.
    """
    output = place.root / "report"
    command = ["benchmark", "report", "-d", dataset, "-o", str(output), *map(str, arguments)]
    with nullcontext() if pictures == "drawn" else undrawn():
        assert main(command if pictures else [*command, "--no-overlays"]) == 0
    return (output / "report.md").read_text()


def rows_of_csv(place: Place) -> list[dict[str, str]]:
    with (place.root / "report" / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def section(text: str, title: str) -> str:
    """Return the text between a heading of level 2 and the next."""
    return re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.M | re.S)[1]

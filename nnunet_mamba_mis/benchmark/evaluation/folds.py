"""Find the folds that nnU-Net trained and validated, and report what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_mamba_mis.benchmark.label_maps import Labels
from nnunet_mamba_mis.benchmark.model import Model, seed_folders
from nnunet_mamba_mis.dataset_conversion.overlaps import REPORT_FILE
from nnunet_mamba_mis.nnunet.dataset import Splits
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE, SPLITS_FILE, check_dataset, not_set
from nnunet_mamba_mis.nnunet.records import Record, read_record
from nnunet_mamba_mis.nnunet.results import fold_number, predicted_files, validation_summary
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import for_file_name, one_line, shortened

BASELINE = "nnUNetTrainer"


@dataclass(frozen=True)
class Fold:
    """A trained and validated fold, or an ensemble of folds that predicted a test set.

    Args:
        model: Trainer, plans and configuration.
        seed: N of the folder seed_N that contains it; empty without such a folder.
        number: Number of the fold; for an ensemble, all numbers, such as 0+1+2.
        folder: nnUNet_results/DATASET/MODEL/fold_N, or the folder of the predictions.
        predictions: Prediction file of each predicted case.
    """

    model: Model
    seed: str
    number: int | str
    folder: Path
    predictions: Mapping[str, Path] = field(hash=False)

    def __str__(self) -> str:
        seed = f" of seed {self.seed}" if self.seed else ""
        return f"{self.model} fold{'s' * isinstance(self.number, str)} {self.number}{seed}"


@dataclass(frozen=True)
class Truth:
    """The ground truth of a dataset, or of a test set for the models trained on that dataset.

    Args:
        name: DatasetXXX_Name that the models were trained on.
        labels: Folder of the label maps.
        images: Folder of the images, which may be missing.
        classes: Classes of the label maps, from dataset.json.
        validation: Validation cases of each fold in splits_final.json; empty without that file.
        group_of: Group (patient, lesion, sequence, …) of each case that has one, as recorded by `mamba_mis convert`.
        test_set: Name of the folder of the images. If it is in a dataset other than `name`, that dataset's name comes
            first. If several ensembles predicted the test set, the folds follow, such as " (folds 0+1)". Empty for
            cross-validation.
    """

    name: str
    labels: Path
    images: Path
    classes: Labels
    validation: Sequence[Sequence[str]]
    group_of: dict[str, str]
    test_set: str = ""

    @property
    def title(self) -> str:
        """Title of the dataset or test set."""
        return f"{self.name} on {self.test_set}" if self.test_set else self.name

    @property
    def stem(self) -> str:
        """The title in a form for file names."""
        return for_file_name(self.title)


class _RecordedSplits(Record):
    groups: tuple[tuple[str, ...], ...] = ()


class _Conversion(Record):
    """The part of `mamba_mis convert`'s report that is used here."""

    splits: _RecordedSplits = _RecordedSplits()


@dataclass(frozen=True)
class FoldSet:
    """Folds of a dataset, sorted by model, seed and number, and descriptions of missing results."""

    folds: list[Fold]
    problems: list[str]

    @property
    def models(self) -> list[Model]:
        """The models in their order, the baseline first."""
        return list(dict.fromkeys(fold.model for fold in self.folds))


def find_truth(dataset: str, raw: Path | None, preprocessed: Path | None) -> Truth:
    """Find the ground truth of a dataset.

    Args:
        dataset: Id or name of the dataset.
        raw: nnUNet_raw, if set.
        preprocessed: nnUNet_preprocessed, if set.

    Raises:
        UserError: Neither folder is set, no dataset or several datasets match, the ground truth is missing, or a file
            cannot be read.
    """
    try:
        check_dataset(dataset)
    except UserError as error:
        raise UserError(f"-d {error}") from None
    bases = [base for base in (preprocessed, raw) if base is not None]
    if not bases:
        raise UserError(not_set("nnUNet_raw"))
    folders = [
        folder
        for base in bases
        if base.is_dir()
        for folder in sorted(base.iterdir())
        if _is_named(folder.name, dataset) and (folder / DATASET_FILE).is_file()
    ]
    names = sorted({folder.name for folder in folders})
    if len(names) != 1:
        problem = f"several folders match ({', '.join(names)})" if names else f"no folder with a {DATASET_FILE} matches"
        raise UserError(f"-d {dataset}: {problem} in {' and '.join(map(str, bases))}")
    (name,) = names
    candidates = [base / name / part for base, part in ((preprocessed, "gt_segmentations"), (raw, "labelsTr")) if base]
    labels = next((folder for folder in candidates if folder.is_dir()), None)
    if labels is None:
        raise UserError(f"{name} has no ground truth: found no folder {' and no folder '.join(map(str, candidates))}")
    splits = next((folder / SPLITS_FILE for folder in folders if (folder / SPLITS_FILE).exists()), None)
    return Truth(
        name=name,
        labels=labels,
        images=(raw or labels) / name / "imagesTr",
        classes=Labels.read(folders[0] / DATASET_FILE),
        validation=[split.val for split in read_record(splits, Splits)] if splits else [],
        group_of=groups_of(*(base / name for base in bases)),
    )


def _is_named(name: str, dataset: str) -> bool:
    """Return whether an id or name refers to the dataset with this full name."""
    return name == dataset or (dataset.isdecimal() and name.startswith(f"Dataset{int(dataset):03d}_"))


def groups_of(*folders: Path) -> dict[str, str]:
    """Return the group of each case, as recorded by `mamba_mis convert` in the first folder that has a report."""
    reports = [folder / REPORT_FILE for folder in folders if (folder / REPORT_FILE).exists()]
    groups = read_record(reports[0], _Conversion).splits.groups if reports else ()
    return {case: group[0] for group in groups for case in group}


def find_folds(truth: Truth, roots: Sequence[Path], trainers: Sequence[str] | None = None) -> FoldSet:
    """Find the validated folds of a dataset.

    Args:
        truth: Ground truth of the dataset.
        roots: Folders like nnUNet_results; for runs with seeds, a folder is named seed_N or has subfolders seed_N.
        trainers: Trainers to include, in order; by default all, with nnUNetTrainer first.

    Raises:
        UserError: The dataset or a trainer has no validated fold, or a fold exists twice.
    """
    folds: list[Fold] = []
    problems: list[str] = []
    trained: set[str] = set()
    for seed, root in seed_folders(roots):
        for folder in sorted((root / truth.name).glob("*__*__*")):
            model = Model.parse(folder.name)
            if model is None:
                continue
            trained.add(model.trainer)
            if trainers is not None and model.trainer not in trainers:
                continue
            for path in sorted(folder.glob("fold_*")):
                if fold := _read_fold(truth, model, seed, path, problems):
                    folds.append(fold)
    _check_folds(truth.name, folds, roots, trainers, trained, problems)
    order = list(trainers) if trainers else [BASELINE, *sorted({fold.model.trainer for fold in folds})]
    folds.sort(key=lambda fold: (order.index(fold.model.trainer), fold.model, fold.seed, fold.number))
    return FoldSet(folds, [*_missing_folds(truth, folds), *problems])


def short_names(models: Sequence[Model]) -> dict[Model, str]:
    """Return a short name for each model: the trainer, and plans and configuration where they differ."""
    parts = [index for index in (1, 2) if len({model[index] for model in models}) > 1]
    return {model: one_line(" ".join([model.trainer, *(model[index] for index in parts)])) for model in models}


def _read_fold(truth: Truth, model: Model, seed: str, folder: Path, problems: list[str]) -> Fold | None:
    """Return the fold in a folder, or None if it cannot be used; describe what is missing in `problems`."""
    name = f"{model} {folder.name}" + (f" of seed {seed}" if seed else "")
    number = fold_number(folder)
    if number is None:
        problems.append(f"{name} is left out: it was trained on all cases, so none are held out")
        return None
    summary = validation_summary(folder)
    if not summary.is_file():
        problems.append(f"{name} is left out: its validation is not finished, as {summary} does not exist")
        return None
    try:
        files = [summary.with_name(file) for file in predicted_files(summary)]
    except UserError as error:
        problems.append(f"{name} is left out: {error}")
        return None
    ending = truth.classes.file_ending
    listed = {file.name.removesuffix(ending): file for file in files}
    if missing := [file.name for file in files if not file.is_file()]:
        problems.append(f"{name}: predictions listed in its summary.json are missing: {shortened(missing)}")
    allowed = set(listed)
    if number < len(truth.validation):
        allowed = set(truth.validation[number])
        problems.extend(_differences_from_split(name, set(listed), allowed))
    predictions = {case: file for case, file in listed.items() if case in allowed and file.is_file()}
    return Fold(model, seed, number, folder, predictions)


def _differences_from_split(name: str, predicted: set[str], expected: set[str]) -> Iterator[str]:
    if missing := sorted(expected - predicted):
        yield f"{name}: cases in splits_final.json were not predicted: {shortened(missing)}"
    if further := sorted(predicted - expected):
        yield (
            f"{name}: predicted cases that splits_final.json does not list for this fold are left out, as the fold may "
            f"have been trained on them: {shortened(further)}"
        )


def _check_folds(
    dataset: str,
    folds: Sequence[Fold],
    roots: Sequence[Path],
    trainers: Sequence[str] | None,
    trained: set[str],
    problems: Sequence[str],
) -> None:
    where = ", ".join(map(str, roots))
    validated = {fold.model.trainer for fold in folds}
    for trainer in trainers or ():
        if trainer not in validated:
            lines = [f"--trainers {trainer}: {dataset} has no validated fold of this trainer in {where}"]
            lines.append(f"trainers with results: {', '.join(sorted(trained)) or 'none'}")
            raise UserError("\n  ".join([*lines, *problems]))
    if not folds:
        raise UserError("\n  ".join([f"{dataset} has no validated fold in {where}", *problems]))
    seen: dict[tuple[Model, str, int | str], Path] = {}
    for fold in folds:
        other = seen.setdefault((fold.model, fold.seed, fold.number), fold.folder)
        if other != fold.folder:
            raise UserError(
                f"{fold} exists twice, in {other} and {fold.folder}: name the folders of different seeds seed_N"
            )


def _missing_folds(truth: Truth, folds: Sequence[Fold]) -> Iterator[str]:
    expected: set[int | str] = set(range(len(truth.validation))) or {fold.number for fold in folds}
    seeds = sorted({fold.seed for fold in folds})
    for model in dict.fromkeys(fold.model for fold in folds):
        for seed in seeds:
            validated = {fold.number for fold in folds if (fold.model, fold.seed) == (model, seed)}
            if missing := sorted(expected - validated, key=str):
                of_seed = f" of seed {seed}" if seed else ""
                yield f"{model}{of_seed}: missing validated fold {', '.join(map(str, missing))} of {len(expected)}"

"""Find what nnU-Net trained and validated, and name what is missing."""

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
    """A fold that was trained and validated, or the ensemble of folds that predicted a test set.

    Args:
        model: Trainer, plans and configuration.
        seed: Of the folder seed_N that it lies in; empty if it is in none.
        number: Of the fold; of an ensemble, all of them, as 0+1+2.
        folder: nnUNet_results/DATASET/MODEL/fold_N, or that of the predictions.
        predictions: File of each case that has one.
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
    """The ground truth of a dataset, or of a test set of its models.

    Args:
        name: DatasetXXX_Name that models were trained on.
        labels: Folder with the label maps.
        images: Folder imagesTr; may not be there.
        classes: What label maps hold, by dataset.json.
        validation: Cases of each fold in splits_final.json; empty if there is none.
        group_of: Patient, lesion, sequence, … of cases that share one, as `mamba_mis convert` recorded it.
        test_set: Folder of its images, and their dataset if it is another; empty for cross-validation.
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
        """What the cases are of."""
        return f"{self.name} on {self.test_set}" if self.test_set else self.name

    @property
    def stem(self) -> str:
        """The same for names of files."""
        return for_file_name(self.title)


class _RecordedSplits(Record):
    groups: tuple[tuple[str, ...], ...] = ()


class _Conversion(Record):
    """What `mamba_mis convert` recorded, as far as it is read here."""

    splits: _RecordedSplits = _RecordedSplits()


@dataclass(frozen=True)
class FoldSet:
    """Folds of a dataset, in the order of models, seeds and folds, and what is missing, in words."""

    folds: list[Fold]
    problems: list[str]

    @property
    def models(self) -> list[Model]:
        """In their order, the baseline first."""
        return list(dict.fromkeys(fold.model for fold in self.folds))


def find_truth(dataset: str, raw: Path | None, preprocessed: Path | None) -> Truth:
    """Find the ground truth of a dataset.

    Args:
        dataset: Id or name.
        raw: nnUNet_raw, if set.
        preprocessed: nnUNet_preprocessed, if set.

    Raises:
        UserError: It is in neither, or a file cannot be read.
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
        if _is_called(folder.name, dataset) and (folder / DATASET_FILE).is_file()
    ]
    names = sorted({folder.name for folder in folders})
    if len(names) != 1:
        problem = f"several match: {', '.join(names)}" if names else f"there is no such folder with a {DATASET_FILE}"
        raise UserError(f"-d {dataset}: {problem} in {' and '.join(map(str, bases))}")
    (name,) = names
    candidates = [base / name / part for base, part in ((preprocessed, "gt_segmentations"), (raw, "labelsTr")) if base]
    labels = next((folder for folder in candidates if folder.is_dir()), None)
    if labels is None:
        raise UserError(f"{name} has no ground truth: there is no {' and no '.join(map(str, candidates))}")
    splits = next((folder / SPLITS_FILE for folder in folders if (folder / SPLITS_FILE).exists()), None)
    return Truth(
        name=name,
        labels=labels,
        images=(raw or labels) / name / "imagesTr",
        classes=Labels.read(folders[0] / DATASET_FILE),
        validation=[split.val for split in read_record(splits, Splits)] if splits else [],
        group_of=groups_of(*(base / name for base in bases)),
    )


def _is_called(name: str, dataset: str) -> bool:
    """Whether a dataset of this full name is meant by an id or name."""
    return name == dataset or (dataset.isdecimal() and name.startswith(f"Dataset{int(dataset):03d}_"))


def groups_of(*folders: Path) -> dict[str, str]:
    """Return groups of cases that `mamba_mis convert` recorded in one of the folders."""
    reports = [folder / REPORT_FILE for folder in folders if (folder / REPORT_FILE).exists()]
    groups = read_record(reports[0], _Conversion).splits.groups if reports else ()
    return {case: group[0] for group in groups for case in group}


def find_folds(truth: Truth, roots: Sequence[Path], trainers: Sequence[str] | None = None) -> FoldSet:
    """Find the validated folds of a dataset.

    Args:
        truth: Of the dataset.
        roots: Folders like nnUNet_results, named seed_N or with folders seed_N in them if there are seeds.
        trainers: To look at, in their order; all by default, the stock one first.

    Raises:
        UserError: There is none, or a trainer has none, or a fold is there twice.
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
    """Return the trainer's name for each model if that tells them apart, else with plans and configuration too."""
    parts = [index for index in (1, 2) if len({model[index] for model in models}) > 1]
    return {model: one_line(" ".join([model.trainer, *(model[index] for index in parts)])) for model in models}


def _read_fold(truth: Truth, model: Model, seed: str, folder: Path, problems: list[str]) -> Fold | None:
    """Return a fold that can be used; what is missing is added to the problems."""
    name = f"{model} {folder.name}" + (f" of seed {seed}" if seed else "")
    number = fold_number(folder)
    if number is None:
        problems.append(f"{name} is left out: it was trained on all cases, so none are held out")
        return None
    summary = validation_summary(folder)
    if not summary.is_file():
        problems.append(f"{name} is left out: it has no {summary}, so its validation has not ended")
        return None
    try:
        files = [summary.with_name(file) for file in predicted_files(summary)]
    except UserError as error:
        problems.append(f"{name} is left out: {error}")
        return None
    ending = truth.classes.file_ending
    listed = {file.name.removesuffix(ending): file for file in files}
    if missing := [file.name for file in files if not file.is_file()]:
        problems.append(f"{name}: its summary.json lists predictions that are not there: {shortened(missing)}")
    allowed = set(listed)
    if number < len(truth.validation):
        allowed = set(truth.validation[number])
        problems.extend(_differences_from_split(name, set(listed), allowed))
    predictions = {case: file for case, file in listed.items() if case in allowed and file.is_file()}
    return Fold(model, seed, number, folder, predictions)


def _differences_from_split(name: str, predicted: set[str], expected: set[str]) -> Iterator[str]:
    if missing := sorted(expected - predicted):
        yield f"{name}: cases of splits_final.json were not predicted: {shortened(missing)}"
    if further := sorted(predicted - expected):
        yield (
            f"{name}: cases that splits_final.json does not have in this fold are left out, as it may have been "
            f"trained on them: {shortened(further)}"
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
            lines = [f"--trainers {trainer}: {dataset} has no validated fold of it in {where}"]
            lines.append(f"there are results of {', '.join(sorted(trained)) or 'no trainer'}")
            raise UserError("\n  ".join([*lines, *problems]))
    if not folds:
        raise UserError("\n  ".join([f"{dataset} has no validated fold in {where}", *problems]))
    seen: dict[tuple[Model, str, int | str], Path] = {}
    for fold in folds:
        other = seen.setdefault((fold.model, fold.seed, fold.number), fold.folder)
        if other != fold.folder:
            raise UserError(f"{fold} exists twice, {other} and {fold.folder}: seeds are told apart by folders seed_N")


def _missing_folds(truth: Truth, folds: Sequence[Fold]) -> Iterator[str]:
    expected: set[int | str] = set(range(len(truth.validation))) or {fold.number for fold in folds}
    seeds = sorted({fold.seed for fold in folds})
    for model in dict.fromkeys(fold.model for fold in folds):
        for seed in seeds:
            validated = {fold.number for fold in folds if (fold.model, fold.seed) == (model, seed)}
            if missing := sorted(expected - validated, key=str):
                of_seed = f" of seed {seed}" if seed else ""
                yield f"{model}{of_seed}: no validated fold {', '.join(map(str, missing))} of {len(expected)}"

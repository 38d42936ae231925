"""Write a dataset into nnUNet_raw."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.archives import archives_among, unpack
from nnunet_mamba_mis.dataset_conversion.base import TRAINING, Dataset, Problem, problems_error
from nnunet_mamba_mis.dataset_conversion.cases import CaseFacts, ConvertJob, convert_case
from nnunet_mamba_mis.dataset_conversion.check import Checked, check_source, named
from nnunet_mamba_mis.dataset_conversion.overlaps import REPORT_FILE, keys, overlaps
from nnunet_mamba_mis.dataset_conversion.place import SPLITS_FILE, Place, WorkFolder
from nnunet_mamba_mis.dataset_conversion.report import Names, conversion_report, dataset_json
from nnunet_mamba_mis.dataset_conversion.splits import Split, grouped_folds, official_split
from nnunet_mamba_mis.dataset_conversion.workers import Workers, default_processes, workers
from nnunet_mamba_mis.errors import UserError

_HELD_OUT = "holdout"


@dataclass(frozen=True)
class Options:
    """What is to be done, besides converting.

    Args:
        resize: side of a square to bring all to, in pixels; None keeps sizes.
        keep_aspect: pad to the square rather than stretch.
        official: one fold of the challenge's own training and validation sets.
        skip_bad: leave out what has a problem rather than fail.
        dry_run: stop after checking.
        overwrite: replace a dataset of the same id and name.
        hold_out: so many training cases, spread evenly over their sorted identifiers, become a test set.
    """

    resize: int | None = None
    keep_aspect: bool = False
    official: bool = False
    skip_bad: bool = False
    dry_run: bool = False
    overwrite: bool = False
    hold_out: int = 0


@dataclass(frozen=True)
class Conversion:
    """What became of a source.

    Args:
        folder: of the dataset in nnUNet_raw; not there after a dry run.
        number_of_cases: in each folder of images.
        left_out: what --skip-bad passed over, as text.
        warnings: worth knowing before the dataset is used.
        splits: what became of them.
    """

    folder: Path
    number_of_cases: Mapping[str, int]
    left_out: list[str]
    warnings: list[str]
    splits: str


def convert_dataset(
    dataset: Dataset,
    sources: Sequence[Path],
    dataset_id: int,
    name: str | None = None,
    processes: int | None = None,
    **options: object,
) -> Conversion:
    """Convert a dataset into nnU-Net's raw format.

    The whole source is checked before anything is written, save for the folder that archives are unpacked to, and the
    dataset appears under its name only when it is complete.

    Args:
        dataset: one of `DATASETS`.
        sources: folders that hold the dataset as distributed, at any depth, or archives of it.
        dataset_id: 1 to 999; no dataset of nnU-Net's may have it yet.
        name: what follows "Dataset027_" in the folder's name; default: the dataset's own.
        processes: how many cases to work on at a time; with 1 no process is started. The result is the same.
        options: those of `Options`.

    Raises:
        UserError: an argument, a file of the source or nnUNet_raw is unusable; nothing is left in nnUNet_raw.
    """
    wanted = Options(**options)  # type: ignore[arg-type]
    processes = default_processes() if processes is None else processes
    _check_options(dataset, wanted, processes)
    place = Place(dataset_id, dataset.folder_name if name is None else name, wanted.overwrite)
    archives = archives_among(sources)
    with place.work() as work, workers(processes) as pool:
        unpacked = unpack(archives, work.subfolder("unpacked")) if archives else {}
        folders = [unpacked.get(source, source) for source in sources]
        names = Names(dict(zip(folders, sources, strict=True)))
        try:
            checked = check_source(dataset, folders, pool)
            if checked.problems and not wanted.skip_bad:
                raise problems_error(checked.problems)
            return _Converter(dataset, wanted, place, folders, names, checked).convert(work, pool)
        except UserError as error:
            raise UserError(names.in_text(str(error))) from None


def _check_options(dataset: Dataset, options: Options, processes: int) -> None:
    if processes < 1:
        raise UserError(f"-np {processes}: the number of processes must be at least 1")
    if options.resize is not None and not 8 <= options.resize <= 8192:
        raise UserError(f"--resize {options.resize}: the side of an image must lie between 8 and 8192 pixels")
    if options.keep_aspect and options.resize is None:
        raise UserError("--keep-aspect says how to resize: give --resize N with it")
    if options.official and not dataset.official_validation:
        raise UserError(f"--official-split: {dataset.name} has no validation set of its own; leave the option out")


class _Converter:
    """A source that was checked, on its way to a dataset."""

    def __init__(
        self,
        dataset: Dataset,
        options: Options,
        place: Place,
        folders: Sequence[Path],
        names: Names,
        checked: Checked,
    ) -> None:
        self.dataset = dataset
        self.options = options
        self.place = place
        self.names = names
        self.checked = checked
        self.facts = checked.facts
        self.duplicates = [(one.case.identifier, other.case.identifier) for one, other in checked.duplicates]
        as_published = {facts.case.identifier: facts.case.subset for facts in self.facts}
        self.subset_of = self._subsets(as_published)
        self.split_rule, self.splits = self._splits(folders, as_published)
        self.warnings = [*checked.notes, *dataset.warnings(as_published), *self._leaks(as_published)]
        if not self.splits:
            self.warnings.append(
                "all training images belong together, so there are no splits: nnU-Net will make its own"
            )

    def convert(self, work: WorkFolder, pool: Workers) -> Conversion:
        """Write the dataset, if it is no dry run, and return what came out."""
        splits = "a dry run writes none"
        if not self.options.dry_run:
            folder = work.subfolder("dataset")
            self._write(folder, pool)
            if self.splits:
                splits = self.place.give_nnunet_splits((folder / SPLITS_FILE).read_text(encoding="utf-8"))
            else:
                splits = "none"
            work.publish(folder)
        counts = Counter(f"images{self._suffix(subset)}" for subset in self.subset_of.values())
        left_out = [problem.text for problem in self.checked.problems]
        return Conversion(
            self.place.target,
            dict(sorted(counts.items())),
            [self.names.in_text(text) for text in left_out],
            [*self.warnings, *self._overlaps()],
            f"{self.split_rule}; {splits}",
        )

    def _subsets(self, as_published: Mapping[str, str]) -> dict[str, str]:
        """Return where each case goes."""
        subset_of = dict(as_published)
        if self.options.official:
            validation = [key for key, subset in as_published.items() if subset == self.dataset.official_validation]
            if not validation:
                raise UserError(
                    f"--official-split: found no {self.dataset.official_validation} set in the source. Give its "
                    "folders or archives with -i, too"
                )
            subset_of.update(dict.fromkeys(validation, TRAINING))
        training = [identifier for identifier, subset in subset_of.items() if subset == TRAINING]
        number = self.options.hold_out
        if not training:
            raise UserError("no training case is left" if as_published else "no case is left")
        if not 0 <= number < len(training):
            raise UserError(f"cannot hold out {number} of {len(training)} training cases")
        held_out = [training[(2 * i + 1) * len(training) // (2 * number)] for i in range(number)]
        return subset_of | dict.fromkeys(held_out, _HELD_OUT)

    def _splits(self, folders: Sequence[Path], as_published: Mapping[str, str]) -> tuple[str, list[Split]]:
        training = [identifier for identifier, subset in self.subset_of.items() if subset == TRAINING]
        if self.options.official:
            validation = {key for key, subset in as_published.items() if subset == self.dataset.official_validation}
            return "one fold: the official training and validation sets", official_split(training, validation)
        grouping = self.dataset.grouping
        group_of: Mapping[str, str] = {}
        shared = "duplicates and near duplicates"
        if grouping:
            group_of = grouping.groups(folders, [facts.case for facts in self.facts])
            shared = f"{grouping.rule}, {shared}"
        in_training = set(training)
        folds = grouped_folds(training, group_of, [pair for pair in self.duplicates if in_training.issuperset(pair)])
        return f"{len(folds)} folds that keep together: {shared}", folds

    def _leaks(self, as_published: Mapping[str, str]) -> list[str]:
        """Return warnings of images that are there twice, above all in training and test set."""
        within: dict[tuple[str, str], list[str]] = {}
        for first, second in self.duplicates:
            # in the official split, the validation set is apart
            of = as_published if self.options.official else self.subset_of
            places = sorted({of[first], of[second]}, key=lambda subset: (subset != TRAINING, subset))
            within.setdefault((places[0], places[-1]), []).append(f"{first} = {second}")
        warnings = []
        for (first, second), pairs in sorted(within.items()):
            if first == second:
                warnings.append(
                    f"{len(pairs)} pairs of images in {_called(first)} are the same or nearly: {named(pairs)}"
                )
            else:
                sets = f"{_called(first)} and {_called(second)}"
                warnings.append(f"{sets} share {len(pairs)} images, the same or nearly, which leaks: {named(pairs)}")
        return warnings

    def _overlaps(self) -> list[str]:
        subset_of = {
            key: self.subset_of[facts.case.identifier]
            for facts in self.facts
            for key in keys(facts.case.identifier, facts.image_sha256)
        }
        return overlaps(self.place.target, subset_of)

    def _suffix(self, subset: str) -> str:
        if subset == TRAINING:
            return TRAINING
        return "Ts" if len(set(self.subset_of.values()) - {TRAINING}) == 1 else f"Ts_{subset}"

    def _write(self, folder: Path, pool: Workers) -> None:
        done = self._convert_cases(folder, pool)
        training = sum(subset == TRAINING for subset in self.subset_of.values())
        report = conversion_report(
            self.dataset,
            {key: value for key, value in asdict(self.options).items() if key not in ("dry_run", "overwrite")},
            [
                (facts, self.subset_of[facts.case.identifier], what)
                for facts, what in zip(self.facts, done, strict=True)
            ],
            self.checked.problems,
            {"rule": self.split_rule, "validation_cases": [len(split["val"]) for split in self.splits]},
            self.warnings,
            self.duplicates,
            self.checked.top,
            self.names,
        )
        (folder / "dataset.json").write_text(dataset_json(self.dataset, self.place.name, training), encoding="utf-8")
        (folder / REPORT_FILE).write_text(report, encoding="utf-8")
        if self.splits:
            (folder / SPLITS_FILE).write_text(json.dumps(self.splits, indent=2) + "\n", encoding="utf-8")

    def _convert_cases(self, folder: Path, pool: Workers) -> list[list[str]]:
        for subset in sorted(set(self.subset_of.values())):
            (folder / f"images{self._suffix(subset)}").mkdir()
            (folder / f"labels{self._suffix(subset)}").mkdir()
        done: list[list[str]] = []
        problems: list[Problem] = []
        for outcome in pool.map(convert_case, [self._job(folder, facts) for facts in self.facts], "Converting"):
            if isinstance(outcome, Problem):
                problems.append(outcome)
            else:
                done.append(outcome)
        if problems:
            raise problems_error(problems)
        return done

    def _job(self, folder: Path, facts: CaseFacts) -> ConvertJob:
        identifier = facts.case.identifier
        suffix = self._suffix(self.subset_of[identifier])
        return ConvertJob(
            facts,
            self.dataset.mask,
            self.checked.top,
            folder / f"images{suffix}" / f"{identifier}_0000.png",
            folder / f"labels{suffix}" / f"{identifier}.png",
            self.options.resize,
            self.options.keep_aspect,
        )


def _called(subset: str) -> str:
    return "the training set" if subset == TRAINING else f"the {subset} set"

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
from nnunet_mamba_mis.dataset_conversion.check import Checked, check_source
from nnunet_mamba_mis.dataset_conversion.overlaps import REPORT_FILE, keys, overlaps
from nnunet_mamba_mis.dataset_conversion.place import SPLITS_FILE, Place, WorkFolder
from nnunet_mamba_mis.dataset_conversion.plan import Options, Plan, make_plan
from nnunet_mamba_mis.dataset_conversion.report import Names, conversion_report, dataset_json
from nnunet_mamba_mis.dataset_conversion.workers import Workers, default_processes, workers
from nnunet_mamba_mis.utils.errors import UserError


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
            plan = make_plan(dataset, wanted, folders, checked)
            splits = "a dry run writes none"
            if not wanted.dry_run:
                splits = _Writer(dataset, wanted, place, names, checked, plan).write(work, pool)
            return _conversion(place, names, checked, plan, splits)
        except UserError as error:
            raise UserError(names.in_text(str(error))) from None


def _conversion(place: Place, names: Names, checked: Checked, plan: Plan, splits: str) -> Conversion:
    counts = Counter(f"images{plan.suffixes[subset]}" for subset in plan.subset_of.values())
    subset_of = {
        key: plan.subset_of[facts.case.identifier]
        for facts in checked.facts
        for key in keys(facts.case.identifier, facts.image_sha256)
    }
    return Conversion(
        place.target,
        dict(sorted(counts.items())),
        [names.in_text(problem.text) for problem in checked.problems],
        [*plan.warnings, *overlaps(place.target, subset_of)],
        f"{plan.split_rule}; {splits}",
    )


def _check_options(dataset: Dataset, options: Options, processes: int) -> None:
    if processes < 1:
        raise UserError(f"-np {processes}: the number of processes must be at least 1")
    if options.resize is not None and not 8 <= options.resize <= 8192:
        raise UserError(f"--resize {options.resize}: the side of an image must lie between 8 and 8192 pixels")
    if options.keep_aspect and options.resize is None:
        raise UserError("--keep-aspect says how to resize: give --resize N with it")
    if options.official and not dataset.official_validation:
        raise UserError(f"--official-split: {dataset.name} has no validation set of its own; leave the option out")


class _Writer:
    """Writes a source that was checked."""

    def __init__(self, dataset: Dataset, options: Options, place: Place, names: Names, checked: Checked, plan: Plan):
        self.dataset = dataset
        self.options = options
        self.place = place
        self.names = names
        self.checked = checked
        self.plan = plan

    def write(self, work: WorkFolder, pool: Workers) -> str:
        """Make the dataset appear, and return what became of its splits."""
        folder = work.subfolder("dataset")
        done = self._convert_cases(folder, pool)
        self._write_texts(folder, done)
        splits = "none"
        if self.plan.splits:
            splits = self.place.give_nnunet_splits((folder / SPLITS_FILE).read_text(encoding="utf-8"))
        work.publish(folder)
        return splits

    def _convert_cases(self, folder: Path, pool: Workers) -> list[list[str]]:
        for suffix in self.plan.suffixes.values():
            (folder / f"images{suffix}").mkdir()
            (folder / f"labels{suffix}").mkdir()
        done: list[list[str]] = []
        problems: list[Problem] = []
        jobs = [self._job(folder, facts) for facts in self.checked.facts]
        for outcome in pool.map(convert_case, jobs, "Converting"):
            if isinstance(outcome, Problem):
                problems.append(outcome)
            else:
                done.append(outcome)
        if problems:
            raise problems_error(problems)
        return done

    def _job(self, folder: Path, facts: CaseFacts) -> ConvertJob:
        identifier = facts.case.identifier
        suffix = self.plan.suffixes[self.plan.subset_of[identifier]]
        return ConvertJob(
            facts,
            self.dataset.mask,
            self.checked.top,
            folder / f"images{suffix}" / f"{identifier}_0000.png",
            folder / f"labels{suffix}" / f"{identifier}.png",
            self.options.resize,
            self.options.keep_aspect,
        )

    def _write_texts(self, folder: Path, done: Sequence[list[str]]) -> None:
        plan = self.plan
        report = conversion_report(
            self.dataset,
            {key: value for key, value in asdict(self.options).items() if key not in ("dry_run", "overwrite")},
            [
                (facts, plan.subset_of[facts.case.identifier], what)
                for facts, what in zip(self.checked.facts, done, strict=True)
            ],
            self.checked.problems,
            {
                "rule": plan.split_rule,
                "validation_cases": [len(split["val"]) for split in plan.splits],
                "groups": sorted(map(sorted, plan.groups)),
            },
            plan.warnings,
            plan.duplicates,
            self.checked.top,
            self.names,
        )
        training = sum(subset == TRAINING for subset in plan.subset_of.values())
        (folder / "dataset.json").write_text(dataset_json(self.dataset, self.place.name, training), encoding="utf-8")
        (folder / REPORT_FILE).write_text(report, encoding="utf-8")
        if plan.splits:
            (folder / SPLITS_FILE).write_text(json.dumps(plan.splits, indent=2) + "\n", encoding="utf-8")

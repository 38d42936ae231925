"""Convert a dataset into nnUNet_raw, from sources to splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.archives import archives_among, unpack
from nnunet_mamba_mis.dataset_conversion.check import Checked, check_source
from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.options import Options
from nnunet_mamba_mis.dataset_conversion.overlaps import keys, overlaps
from nnunet_mamba_mis.dataset_conversion.plan import Plan, make_plan
from nnunet_mamba_mis.dataset_conversion.problems import problems_error
from nnunet_mamba_mis.dataset_conversion.report import Names
from nnunet_mamba_mis.dataset_conversion.target import Target
from nnunet_mamba_mis.dataset_conversion.work_folder import work_folder
from nnunet_mamba_mis.dataset_conversion.workers import workers
from nnunet_mamba_mis.dataset_conversion.write import write_dataset
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import count_cores


@dataclass(frozen=True)
class Conversion:
    """What became of a source.

    Args:
        folder: Of the dataset in nnUNet_raw; not there after a dry run.
        number_of_cases: In each folder of images.
        left_out: What --skip-bad left out, as text.
        warnings: Worth knowing before the dataset is used.
        splits: What became of them.
        first_fold: The one to train first.
    """

    folder: Path
    number_of_cases: Mapping[str, int]
    left_out: list[str]
    warnings: list[str]
    splits: str
    first_fold: str


def convert_dataset(
    dataset: Dataset,
    sources: Sequence[Path],
    dataset_id: int,
    name: str | None = None,
    processes: int | None = None,
    options: Options | None = None,
) -> Conversion:
    """Convert a dataset into nnU-Net's raw format.

    The whole source is checked before anything is written, save for the folder that archives are unpacked to, and the
    dataset appears under its name only when it is complete.

    Args:
        dataset: One of `DATASETS`.
        sources: Folders that hold the dataset as distributed, at any depth, or archives of it.
        dataset_id: 1 to 999; no dataset of nnU-Net's may have it yet.
        name: What follows "Dataset027_" in the folder's name; default: the dataset's own.
        processes: How many cases to work on at a time; with 1 no process is started. The result is the same.
        options: How to convert.

    Raises:
        UserError: An argument, a file of the source or nnUNet_raw is unusable; nothing is left in nnUNet_raw.
    """
    options = options or Options()
    processes = min(8, count_cores()) if processes is None else processes
    if processes < 1:
        raise UserError(f"-np {processes}: the number of processes must be at least 1")
    options.check(dataset)
    target = Target(dataset_id, dataset.folder_name if name is None else name, options.overwrite)
    archives = archives_among(sources)
    with work_folder(target) as work, workers(processes) as pool:
        unpacked = unpack(archives, work.subfolder("unpacked")) if archives else {}
        folders = [unpacked.get(source, source) for source in sources]
        names = Names(dict(zip(folders, sources, strict=True)))
        try:
            checked = check_source(dataset, folders, pool)
            if checked.problems and not options.skip_bad:
                raise problems_error(checked.problems)
            plan = make_plan(dataset, options, folders, checked)
            splits = "a dry run writes none"
            if not options.dry_run:
                built = work.subfolder("dataset")
                write_dataset(built, dataset, options, target.name, checked, plan, names, pool)
                splits = target.give_nnunet_splits(built) if plan.splits else "none"
                work.publish(built)
            return _conversion(target, names, checked, plan, splits)
        except UserError as error:
            raise UserError(names.in_text(str(error))) from None


def _conversion(target: Target, names: Names, checked: Checked, plan: Plan, splits: str) -> Conversion:
    counts = Counter(f"images{plan.suffixes[subset]}" for subset in plan.subset_of.values())
    subset_of = {
        key: plan.subset_of[facts.case.identifier]
        for facts in checked.facts
        for key in keys(facts.case.identifier, facts.image_sha256)
    }
    return Conversion(
        target.folder,
        dict(sorted(counts.items())),
        [names.in_text(problem.text) for problem in checked.problems],
        [*plan.warnings, *overlaps(target.folder, subset_of)],
        f"{plan.split_rule}; {splits}",
        plan.first_fold,
    )

"""Convert a dataset to nnU-Net's raw format, from its source to its splits."""

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
    """The outcome of a conversion.

    Args:
        folder: The dataset's folder in nnUNet_raw; a dry run does not create it.
        number_of_cases: Number of cases in each folder of images.
        left_out: Problem of each case or file that --skip-bad left out.
        warnings: What to know before using the dataset.
        splits: How the folds were made, and where they are.
        first_fold: The fold to train first.
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
    """Convert a dataset to nnU-Net's raw format.

    Archives are unpacked into a temporary folder. Nothing else is written until the whole source has been checked, and
    the dataset appears under its name only once it is complete.

    Args:
        dataset: One of `DATASETS`.
        sources: Folders that contain the dataset as distributed, at any depth, or its archives.
        dataset_id: 1 to 999; no nnU-Net dataset may use it yet, except one of the same name that `options.overwrite`
            replaces.
        name: The dataset's name without a prefix such as "Dataset027_"; default: its `folder_name`.
        processes: Number of cases to process in parallel; 1 starts no process. The result is the same.
        options: How to convert.

    Raises:
        UserError: An argument, a source file or nnUNet_raw cannot be used; nothing is left in nnUNet_raw.
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
            splits = "not written in a dry run"
            if not options.dry_run:
                built = work.subfolder("dataset")
                write_dataset(built, dataset, options, target.name, checked, plan, names, pool)
                splits = target.give_nnunet_splits(built) if plan.splits else "none written"
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

"""Write a checked source as an nnU-Net dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.cases import ConvertJob, convert_case, killed_conversion
from nnunet_mamba_mis.dataset_conversion.check import Checked
from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING, Dataset
from nnunet_mamba_mis.dataset_conversion.options import Options
from nnunet_mamba_mis.dataset_conversion.overlaps import REPORT_FILE
from nnunet_mamba_mis.dataset_conversion.plan import Plan
from nnunet_mamba_mis.dataset_conversion.problems import Problem, problems_error
from nnunet_mamba_mis.dataset_conversion.report import Names, conversion_report, dataset_json
from nnunet_mamba_mis.dataset_conversion.workers import Workers
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE, SPLITS_FILE


def write_dataset(
    folder: Path,
    dataset: Dataset,
    options: Options,
    name: str,
    checked: Checked,
    plan: Plan,
    names: Names,
    pool: Workers,
) -> None:
    """Write images, label maps, dataset.json, the report and the splits.

    Args:
        folder: An empty folder.
        dataset: The dataset.
        options: Options of the conversion.
        name: The dataset's name without a prefix such as "Dataset027_".
        checked: Contents of the source.
        plan: Subset of each case, and folds.
        names: Names of source files.
        pool: Processes that convert.

    Raises:
        UserError: A file has become unusable since it was checked.
        OSError: A file cannot be written.
    """
    for suffix in plan.suffixes.values():
        (folder / f"images{suffix}").mkdir()
        (folder / f"labels{suffix}").mkdir()
    jobs = []
    for facts in checked.facts:
        identifier = facts.case.identifier
        suffix = plan.suffixes[plan.subset_of[identifier]]
        image = folder / f"images{suffix}" / f"{identifier}_0000.png"
        label = folder / f"labels{suffix}" / f"{identifier}.png"
        jobs.append(
            ConvertJob(
                facts,
                dataset.mask,
                checked.level,
                image,
                label,
                options.resize,
                options.keep_aspect,
                checked.bits,
            )
        )
    done = _convert(jobs, pool)
    texts = {
        DATASET_FILE: dataset_json(dataset, name, list(plan.subset_of.values()).count(TRAINING)),
        REPORT_FILE: conversion_report(dataset, options, checked, plan, done, names),
    }
    if plan.splits:
        texts[SPLITS_FILE] = json.dumps(plan.splits, indent=2) + "\n"
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")


def _convert(jobs: Sequence[ConvertJob], pool: Workers) -> list[list[str]]:
    """Convert all cases, and return a description of the changes to each."""
    outcomes = list(pool.map(convert_case, jobs, "Converting", killed_conversion))
    if problems := [outcome for outcome in outcomes if isinstance(outcome, Problem)]:
        raise problems_error(problems)
    return [outcome for outcome in outcomes if not isinstance(outcome, Problem)]

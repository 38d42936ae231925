"""Check a whole source before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.cases import CaseFacts, CheckJob, check_case
from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.duplicates import Pair, duplicates, exact_duplicates
from nnunet_mamba_mis.dataset_conversion.masks import full_range, mask_problem
from nnunet_mamba_mis.dataset_conversion.problems import DUPLICATE, EMPTY_MASK, Problem
from nnunet_mamba_mis.dataset_conversion.workers import Workers
from nnunet_mamba_mis.utils.text import shortened


@dataclass(frozen=True)
class Checked:
    """A source as it was found.

    Args:
        facts: Of the cases without a problem, sorted by identifier.
        problems: All that is wrong.
        notes: What is as the dataset was published, but worth knowing.
        brightest: The brightest value of all masks.
        duplicates: Pairs of cases that join all with the same image, or nearly so.
    """

    facts: list[CaseFacts]
    problems: list[Problem]
    notes: list[str]
    brightest: int
    duplicates: list[Pair]


def check_source(dataset: Dataset, folders: Sequence[Path], workers: Workers) -> Checked:
    """Find the cases, decode all files, and return what is fit to be converted and what is wrong.

    Raises:
        UserError: This is not the dataset's layout.
    """
    found = dataset.find_cases(folders)
    problems = list(found.problems)
    readable: list[CaseFacts] = []
    for outcome in workers.map(check_case, [CheckJob(case, dataset.mask) for case in found], "Checking"):
        if isinstance(outcome, CaseFacts):
            readable.append(outcome)
        else:
            problems += outcome
    notes: list[str] = []
    brightest = full_range(dataset.mask, [facts.mask for facts in readable])
    _judge_masks(dataset, readable, brightest, problems, notes)
    bad = {problem.case for problem in problems}
    exact = exact_duplicates([facts for facts in readable if facts.case.identifier not in bad])
    if not dataset.duplicates:
        for first, copy in exact:
            text = f"{copy.case.image} is a copy of {first.case.image}"
            problems.append(Problem(DUPLICATE, text, copy.case.identifier))
    bad = {problem.case for problem in problems}
    facts = [facts for facts in readable if facts.case.identifier not in bad]
    return Checked(facts, problems, notes, brightest, duplicates(facts))


def _judge_masks(
    dataset: Dataset, readable: Sequence[CaseFacts], brightest: int, problems: list[Problem], notes: list[str]
) -> None:
    empty = []
    for facts in readable:
        if judgement := mask_problem(dataset.mask, facts.mask, brightest):
            kind, reason = judgement
            if kind == EMPTY_MASK and dataset.empty_masks:
                empty.append(facts.case.identifier)
            else:
                problems.append(Problem(kind, f"{facts.case.mask} {reason}", facts.case.identifier))
    if empty:
        notes.append(f"{len(empty)} masks are empty: {shortened(empty)}")

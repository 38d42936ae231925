"""Check a whole source before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.cases import CaseFacts, check_case, killed_check
from nnunet_mamba_mis.dataset_conversion.dataset import Colour, Dataset, LabelMask
from nnunet_mamba_mis.dataset_conversion.fingerprints import near_pairs
from nnunet_mamba_mis.dataset_conversion.groups import Forest
from nnunet_mamba_mis.dataset_conversion.masks import common_level, mask_problem
from nnunet_mamba_mis.dataset_conversion.problems import DUPLICATE, EMPTY_MASK, Problem
from nnunet_mamba_mis.dataset_conversion.sixteen_bits import sixteen_bits_note
from nnunet_mamba_mis.dataset_conversion.workers import Workers
from nnunet_mamba_mis.utils.text import counted, shortened


@dataclass(frozen=True)
class Checked:
    """The contents of a source.

    Args:
        facts: Facts of each case without a problem, sorted by identifier.
        problems: All problems of the source.
        notes: Peculiarities of the source that users should know about.
        level: The `common_level` of all masks.
        duplicates: Pairs of identifiers that connect all cases with (nearly) the same image.
        bits: Bit depth that 16-bit images are scaled from; 0 if there are none.
    """

    facts: list[CaseFacts]
    problems: list[Problem]
    notes: list[str]
    level: Colour
    duplicates: list[tuple[str, str]]
    bits: int


def check_source(dataset: Dataset, folders: Sequence[Path], workers: Workers) -> Checked:
    """Find the cases, decode all files, and return the usable cases and all problems.

    Raises:
        UserError: The source does not have the dataset's layout.
    """
    found = dataset.find_cases(folders)
    problems = list(found.problems)
    readable: list[CaseFacts] = []
    for outcome in workers.map(partial(check_case, dataset.mask), found, "Checking", killed_check):
        if isinstance(outcome, CaseFacts):
            readable.append(outcome)
        else:
            problems += outcome
    notes: list[str] = []
    level = common_level(mask for facts in readable for mask in facts.masks)
    _check_masks(dataset, readable, level, problems, notes)
    bad = {problem.case for problem in problems}
    usable = [facts for facts in readable if facts.case.identifier not in bad]
    if not dataset.duplicates:
        copies = _exact_duplicates(usable)
        for first, copy in copies:
            text = f"{copy.case.image} is a copy of {first.case.image}"
            problems.append(Problem(DUPLICATE, text, copy.case.identifier))
        bad = {copy.case.identifier for _, copy in copies}
        usable = [facts for facts in usable if facts.case.identifier not in bad]
    bits = [facts.bits for facts in usable]
    if any(bits):
        notes.append(sixteen_bits_note(bits))
    return Checked(usable, problems, notes, level, _duplicates(usable), max(bits, default=0))


def _check_masks(
    dataset: Dataset, readable: Sequence[CaseFacts], level: Colour, problems: list[Problem], notes: list[str]
) -> None:
    empty = []
    for facts in readable:
        is_empty = not any(mask.drawn for mask in facts.masks)
        for path, mask in zip(facts.case.masks, facts.masks, strict=True):
            kind, reason = mask_problem(dataset.mask, mask, level) or ("", "")
            if kind and (kind != EMPTY_MASK or (is_empty and not dataset.empty_masks)):
                problems.append(Problem(kind, f"{path} {reason}", facts.case.identifier))
        if is_empty:
            empty.append(facts.case.identifier)
    if empty and dataset.empty_masks:
        notes.append(f"{counted(len(empty), 'case')} with empty masks: {shortened(empty)}")
    if isinstance(dataset.mask, LabelMask):
        present = frozenset().union(*(mask.labels for facts in readable for mask in facts.masks))
        absent = [dataset.mask.names[label] for label in sorted(set(dataset.mask.names) - present - {0})]
        if absent:
            notes.append(f"no mask contains {', '.join(absent)}: check --labels")


def _exact_duplicates(facts: Sequence[CaseFacts]) -> list[tuple[CaseFacts, CaseFacts]]:
    """Return pairs of cases whose images have the same bytes: the first such case, and a later one."""
    first: dict[str, CaseFacts] = {}
    return [(first[case.image_sha256], case) for case in facts if first.setdefault(case.image_sha256, case) is not case]


def _duplicates(facts: Sequence[CaseFacts]) -> list[tuple[str, str]]:
    """Return the fewest pairs of cases with (nearly) the same image that connect all duplicates."""
    with_fingerprint = [case for case in facts if case.fingerprint]
    near = (
        (with_fingerprint[i], with_fingerprint[j])
        for i, j in near_pairs([case.fingerprint for case in with_fingerprint])
    )
    forest = Forest(case.case.identifier for case in facts)
    pairs = chain(_exact_duplicates(facts), near)
    named = ((first.case.identifier, second.case.identifier) for first, second in pairs)
    return [pair for pair in named if forest.join(*pair)]

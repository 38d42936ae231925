"""See whether another dataset in nnUNet_raw tests on what this one trains on."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.base import TRAINING
from nnunet_mamba_mis.dataset_conversion.check import named

REPORT_FILE = "conversion_report.json"

# these name an image in all years of the challenge
_GLOBAL_IDENTIFIER = re.compile(r"ISIC_\d+")


def keys(identifier: str, sha256: str) -> list[str]:
    """Return what tells that two cases of different datasets are the same image."""
    return [sha256, identifier] if _GLOBAL_IDENTIFIER.fullmatch(identifier) else [sha256]


def overlaps(target: Path, subset_of: Mapping[str, str]) -> list[str]:
    """Return a warning for each converted dataset beside the target with images that one trains and one tests on.

    Args:
        target: folder of the dataset in nnUNet_raw.
        subset_of: the subset of each of the `keys` of all its cases.
    """
    warnings = []
    for file in sorted(target.parent.glob(f"Dataset*/{REPORT_FILE}")):
        if file.parent != target:
            shared = [
                case["identifier"]
                for case in _list(file, "cases")
                for here in [next((subset_of[key] for key in _keys(case) if key in subset_of), None)]
                if here is not None and (here == TRAINING) != (case["subset"] == TRAINING)
            ]
            if shared:
                warnings.append(
                    f"{len(shared)} images are for training here and for testing in {file.parent.name}, or the other "
                    f"way round ({named(shared)}): training on one and testing on the other leaks"
                )
    return warnings


def trained_on(trained: Path, tested: Path, cases: Collection[str]) -> list[str]:
    """Return those of the cases of a converted dataset that are, or nearly are, training images of another or itself.

    Args:
        trained: folder of a dataset in nnUNet_raw.
        tested: folder of the dataset, perhaps the same, that the cases are of.
        cases: identifiers.
    """
    of_training = [case for case in _list(trained / REPORT_FILE, "cases") if case["subset"] == TRAINING]
    known = {key for case in of_training for key in _keys(case)}
    same = {case["identifier"] for case in _list(tested / REPORT_FILE, "cases") if known.intersection(_keys(case))}
    if trained == tested:
        identifiers = {case["identifier"] for case in of_training}
        pairs = [pair for pair in _list(tested / REPORT_FILE, "duplicates") if identifiers.intersection(pair)]
        same = same.union(*pairs) - identifiers
    return sorted(same.intersection(cases))


def _keys(case: Mapping) -> list[str]:
    return keys(case["identifier"], case["image"]["sha256"])


def _list(file: Path, name: str) -> list:
    try:
        return json.loads(file.read_text(encoding="utf-8"))[name]
    # not of this tool, or of another version of it
    except (OSError, ValueError, KeyError, TypeError):
        return []

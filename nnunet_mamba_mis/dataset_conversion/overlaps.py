"""See whether another dataset in nnUNet_raw tests on what this one trains on."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING
from nnunet_mamba_mis.dataset_conversion.fingerprints import from_hex, near_any
from nnunet_mamba_mis.utils.text import counted, shortened

REPORT_FILE = "conversion_report.json"

# these name an image in all years of the challenge
_GLOBAL_IDENTIFIER = re.compile(r"ISIC_\d+")


def keys(identifier: str, sha256: str) -> list[str]:
    """Return what tells that two cases of different datasets are the same image."""
    return [sha256, identifier] if _GLOBAL_IDENTIFIER.fullmatch(identifier) else [sha256]


def overlaps(target: Path, subset_of: Mapping[str, str]) -> list[str]:
    """Return a warning for each converted dataset beside the target with images that one trains and one tests on.

    Args:
        target: Folder of the dataset in nnUNet_raw.
        subset_of: The subset of each of the `keys` of all its cases.
    """
    warnings = []
    for file in sorted(target.parent.glob(f"Dataset*/{REPORT_FILE}")):
        if file.parent != target:
            shared = [
                case["identifier"]
                for case in _cases(file)
                for here in [next((subset_of[key] for key in _keys(case) if key in subset_of), None)]
                if here is not None and (here == TRAINING) != (case["subset"] == TRAINING)
            ]
            if shared:
                warnings.append(
                    f"{counted(len(shared), 'image')} for training here and for testing in {file.parent.name}, or the "
                    f"other way round ({shortened(shared)}): training on one and testing on the other leaks"
                )
    return warnings


def trained_on(trained: Path, tested: Path, cases: Collection[str]) -> list[str] | None:
    """Return those of the cases of a converted dataset that are, or nearly are, training images of another or itself.

    Args:
        trained: Folder of a dataset in nnUNet_raw.
        tested: Folder of the dataset, perhaps the same, that the cases are of.
        cases: Identifiers.

    Returns:
        Identifiers; None if one of the folders has no record of its conversion.
    """
    training = [case for case in _cases(trained / REPORT_FILE) if case["subset"] == TRAINING]
    wanted = set(cases)
    looked_at = [
        case
        for case in _cases(tested / REPORT_FILE)
        if case["identifier"] in wanted and not (trained == tested and case["subset"] == TRAINING)
    ]
    if not training or not looked_at:
        return None
    known = {key for case in training for key in _keys(case)}
    near = near_any([_fingerprint(case) for case in looked_at], [_fingerprint(case) for case in training])
    return sorted(
        case["identifier"]
        for case, is_near in zip(looked_at, near, strict=True)
        if is_near or known.intersection(_keys(case))
    )


def _keys(case: Mapping) -> list[str]:
    return keys(case["identifier"], case["image"]["sha256"])


def _fingerprint(case: Mapping) -> bytes:
    return from_hex(case["image"].get("fingerprint"))


def _cases(file: Path) -> list[Mapping]:
    """Cases in a report; what is not of this tool, or of another version of it, is left out."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["cases"]
        return [case for case in found if all(isinstance(value, str) for value in (case["subset"], *_keys(case)))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []

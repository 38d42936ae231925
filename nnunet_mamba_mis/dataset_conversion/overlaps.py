"""Find images that one converted dataset trains on and another one tests on."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING
from nnunet_mamba_mis.dataset_conversion.fingerprints import from_hex, near_any
from nnunet_mamba_mis.utils.text import counted, shortened

REPORT_FILE = "conversion_report.json"

# ISIC's identifiers name an image across all years of the challenge
_GLOBAL_IDENTIFIER = re.compile(r"ISIC_\d+")


def keys(identifier: str, sha256: str) -> list[str]:
    """Return keys of a case; cases of different datasets that share a key have the same image."""
    return [sha256, identifier] if _GLOBAL_IDENTIFIER.fullmatch(identifier) else [sha256]


def overlaps(target: Path, subset_of: Mapping[str, str]) -> list[str]:
    """Return a warning for each other converted dataset that tests on this one's training images, or vice versa.

    Args:
        target: The dataset's folder in nnUNet_raw.
        subset_of: Subset of the case that each of the `keys` belongs to.
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
                    f"{counted(len(shared), 'image')} of this training set are test images in {file.parent.name}, or "
                    f"vice versa ({shortened(shared)}): training on one dataset and testing on the other is a data leak"
                )
    return warnings


def trained_on(trained: Path, tested: Path, cases: Collection[str]) -> list[str] | None:
    """Return the cases of a converted dataset that are (nearly) identical to training images of a dataset.

    Args:
        trained: Folder in nnUNet_raw of the dataset that was trained on.
        tested: Folder in nnUNet_raw of the cases' dataset, which may be the same.
        cases: Identifiers of the cases.

    Returns:
        Identifiers; None unless the folders' conversion reports list training images and at least one of the cases.
    """
    training = [case for case in _cases(trained / REPORT_FILE) if case["subset"] == TRAINING]
    identifiers = set(cases)
    test_cases = [
        case
        for case in _cases(tested / REPORT_FILE)
        if case["identifier"] in identifiers and not (trained == tested and case["subset"] == TRAINING)
    ]
    if not training or not test_cases:
        return None
    known = {key for case in training for key in _keys(case)}
    near = near_any([_fingerprint(case) for case in test_cases], [_fingerprint(case) for case in training])
    return sorted(
        case["identifier"]
        for case, is_near in zip(test_cases, near, strict=True)
        if is_near or known.intersection(_keys(case))
    )


def _keys(case: Mapping) -> list[str]:
    return keys(case["identifier"], case["image"]["sha256"])


def _fingerprint(case: Mapping) -> bytes:
    return from_hex(case["image"].get("fingerprint"))


def _cases(file: Path) -> list[Mapping]:
    """Return the cases in a report; none if another tool or an incompatible version wrote it."""
    try:
        cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
        return [case for case in cases if all(isinstance(value, str) for value in (case["subset"], *_keys(case)))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []

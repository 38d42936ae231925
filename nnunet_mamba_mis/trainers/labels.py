"""The labels of preprocessed cases, compared with those of dataset.json."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_mamba_mis.utils.subprocesses import count_cores
from nnunet_mamba_mis.utils.text import shortened

# outside of the image's nonzero part; nnU-Net makes it background
_OUTSIDE = -1


def stop_at_unknown_labels(datasets: Iterable[nnUNetBaseDataset], labels: LabelManager) -> None:
    """End with one message if a case has labels that dataset.json lacks.

    The loss fails at them, on a GPU without a hint; with regions they would be background without a word. A batch does
    not tell the latter, and may meet the first such case after hours, so all cases are read before training: 2 ms each
    for 2D images.

    Args:
        datasets: Preprocessed cases for training and validation.
        labels: Those of dataset.json.

    Raises:
        SystemExit: A case has other labels, or dataset.json's own are not 0, 1, 2, …
    """
    all_labels = [int(label) for label in labels.all_labels]
    if not labels.has_regions and all_labels != list(range(len(all_labels))):
        raise SystemExit(f"dataset.json has the labels {_listed(all_labels)}, but they must be 0, 1, 2, … without gaps")
    known = {_OUTSIDE, *all_labels} | ({labels.ignore_label} if labels.has_ignore_label else set())
    # fold "all" has the same cases in both
    cases = {case: dataset for dataset in datasets for case in dataset.identifiers}

    def unknown(case: str) -> list[int]:
        return unknown_labels(cases[case].load_case(case)[1][:], known)

    with ThreadPoolExecutor(count_cores()) as pool:
        found = {case: values for case, values in zip(cases, pool.map(unknown, cases), strict=True) if values}
    if not found:
        return
    folder = Path(next(iter(cases.values())).source_folder)
    listed = shortened([f"{case} ({shortened([str(value) for value in values])})" for case, values in found.items()])
    raise SystemExit(
        f"Training cannot begin: {len(found)} of {len(cases)} cases in {folder} have labels that dataset.json lacks: "
        f"{listed}. It has {_listed(sorted(known - {_OUTSIDE}))}. Give the masks these values (`mamba_mis convert` "
        "does it for masks of 0 and 255), or dataset.json those of the masks, then run nnUNetv2_plan_and_preprocess "
        "--verify_dataset_integrity again"
    )


def unknown_labels(segmentation: NDArray, known: set[int]) -> list[int]:
    """Return the values in a segmentation that are not known."""
    if not segmentation.size:
        return []
    # mostly enough, and much faster than all values
    if known.issuperset(range(int(segmentation.min()), int(segmentation.max()) + 1)):
        return []
    return sorted(set(np.unique(segmentation).tolist()) - known)


def _listed(labels: Iterable[int]) -> str:
    return ", ".join(map(str, labels))

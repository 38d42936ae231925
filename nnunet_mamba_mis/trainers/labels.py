"""Compare the labels of preprocessed cases with those of dataset.json."""

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

# the label of pixels outside the image's nonzero part; nnU-Net turns it into background
_OUTSIDE = -1


def stop_at_unknown_labels(datasets: Iterable[nnUNetBaseDataset], labels: LabelManager) -> None:
    """Exit with one message if a case has labels that dataset.json lacks.

    The loss fails on such labels; on a GPU, its error does not hint at the cause. With regions, such labels silently
    become background, so a batch does not show them. A run may reach the first such case after hours, so all cases are
    read before training starts: 2 ms per 2D image.

    Args:
        datasets: Preprocessed cases for training and validation.
        labels: Labels of dataset.json.

    Raises:
        SystemExit: A case has other labels, or the labels of dataset.json are not 0, 1, 2, …
    """
    all_labels = [int(label) for label in labels.all_labels]
    if not labels.has_regions and all_labels != list(range(len(all_labels))):
        raise SystemExit(f"dataset.json has the labels {_listed(all_labels)}: number them 0, 1, 2, … without gaps")
    known = {_OUTSIDE, *all_labels} | ({labels.ignore_label} if labels.has_ignore_label else set())
    # for fold "all", both datasets have the same cases
    cases = {case: dataset for dataset in datasets for case in dataset.identifiers}

    def unknown_in(case: str) -> list[int]:
        return unknown_labels(cases[case].load_case(case)[1][:], known)

    with ThreadPoolExecutor(count_cores()) as pool:
        unknown = {case: values for case, values in zip(cases, pool.map(unknown_in, cases), strict=True) if values}
    if not unknown:
        return
    folder = Path(next(iter(cases.values())).source_folder)
    listed = shortened([f"{case} ({shortened([str(value) for value in values])})" for case, values in unknown.items()])
    raise SystemExit(
        f"Training cannot start: {len(unknown)} of {len(cases)} cases in {folder} have labels that dataset.json lacks: "
        f"{listed}. dataset.json has {_listed(sorted(known - {_OUTSIDE}))}. Correct the masks (`mamba_mis convert` "
        "converts masks of 0 and 255) or dataset.json, then run nnUNetv2_plan_and_preprocess "
        "--verify_dataset_integrity again"
    )


def unknown_labels(segmentation: NDArray, known: set[int]) -> list[int]:
    """Return the values in a segmentation that are not among the known ones."""
    if not segmentation.size:
        return []
    # the range usually decides, and finding it is much faster than looking at all values
    if known.issuperset(range(int(segmentation.min()), int(segmentation.max()) + 1)):
        return []
    return sorted(set(np.unique(segmentation).tolist()) - known)


def _listed(labels: Iterable[int]) -> str:
    return ", ".join(map(str, labels))

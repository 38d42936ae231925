"""Labels that preprocessed cases contain but dataset.json does not list."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_mamba_mis.trainers.labels import stop_at_unknown_labels
from support.images import disc
from support.nnunet_workplace import Dataset

TWO = {"background": 0, "polyp": 1}
IGNORED = {**TWO, "ignore": 2}
REGIONS = {"background": 0, "whole": [1, 2, 4], "core": [2, 4]}


@pytest.fixture(params=[nnUNetDatasetBlosc2, nnUNetDatasetNumpy])
def check(request, tmp_path):
    """Return a function that writes a case for each tuple of label values, and checks the cases as training does."""

    def check(labels: dict, *cases: tuple[int, ...]):
        dataset = request.param
        further = {"chunks": (1, 1, 4, 4), "blocks": (1, 1, 4, 4)} if dataset is nnUNetDatasetBlosc2 else {}
        for number, values in enumerate(cases):
            seg = np.zeros((1, 1, 4, 4), np.int16)
            seg.flat[: len(values)] = values
            data = np.zeros((1, 1, 4, 4), np.float32)
            dataset.save_case(data, seg, {}, str(tmp_path / f"case{number}"), **further)
        manager = LabelManager(labels, [1, 2] if "whole" in labels else None)
        stop_at_unknown_labels([dataset(str(tmp_path), None)], manager)

    return check


@pytest.mark.parametrize(
    ("labels", "cases"),
    [
        (TWO, [(0, 1), (0,), (-1, 1)]),  # nnU-Net writes -1 outside the image's nonzero part
        (IGNORED, [(0, 1, 2), (2,)]),
        (REGIONS, [(0, 1, 2, 4)]),
        ({**REGIONS, "ignore": 5}, [(0, 5), (4,)]),
    ],
    ids=["classes", "ignore", "regions", "regions and ignore"],
)
def test_labels_of_dataset_json_pass(check, labels, cases):
    check(labels, *cases)


@pytest.mark.parametrize(
    ("labels", "cases", "named"),
    [
        (TWO, [(0, 1), (0, 255)], r"case1 \(255\)"),
        (TWO, [(0, 1), (0, 2, 3)], r"case1 \(2, 3\)"),
        (TWO, [(-2,)], r"case0 \(-2\)"),
        (IGNORED, [(3,)], r"case0 \(3\)"),
        (REGIONS, [(1, 3)], r"case0 \(3\)"),
    ],
    ids=["0 and 255", "two more", "negative", "beside ignore", "regions"],
)
def test_other_labels_are_named_with_their_case(check, labels, cases, named):
    with pytest.raises(SystemExit, match=named):
        check(labels, *cases)


def test_labels_with_a_gap_are_named(check):
    with pytest.raises(SystemExit, match="0, 1, 3"):
        check({"background": 0, "a": 1, "b": 3}, (0, 1))


@pytest.mark.slow
@pytest.mark.feature("Labels", "labels that dataset.json lacks end in one message")
def test_training_on_masks_of_0_and_255_ends_with_one_message(nnunet):
    mask = disc(20, 18, 7, (40, 36))
    cases = {f"case{i}": (100 * mask[None].astype(np.uint8), mask * (255 if i == 3 else 1)) for i in range(6)}
    dataset = nnunet.add(Dataset(93, cases, TWO))
    output = nnunet.train(dataset.number, 0, "nnUNetTrainerMambaMIS_S_1epoch", status=1)
    assert "case3 (255)" in output.splitlines()[-1] and "Traceback" not in output
    assert not list(nnunet.results.rglob("Dataset093*/**/checkpoint*"))

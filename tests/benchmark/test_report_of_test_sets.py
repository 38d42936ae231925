"""Test sets and other datasets have their own tables in `mamba_mis benchmark report`."""

from __future__ import annotations

import json
import os

import imageio.v3 as imageio
import numpy as np
import pytest

from support.benchmark_results import CASES, FAR, OURS, SHAPES, STOCK, predicted, report, rows_of_csv, section
from support.small_dataset import OTHER


def test_each_test_set_has_its_own_tables_and_pictures(tested):
    text = report(tested, pictures="undrawn")
    for title, groups in (
        (f"{tested.name} on imagesTs_far", "7 cases (no groups are recorded"),
        (f"{tested.name} on {OTHER} imagesTr", "7 cases in 5 groups"),
    ):
        part = section(text, title)
        assert groups in part and "folds 0+1" in part
        assert f"| {OURS} | 7 |" in part and "rank-biserial" in part and "global-pixel Dice" in part
        for picture in ("differences", "overlays"):
            file = f"{title.replace(' ', '_')}_{picture}.png"
            assert f"]({file})" in part and (tested.root / "report" / file).is_file()
        assert "seconds per epoch" not in part
    assert "imagesTs_far" not in section(text, tested.name).partition("### Test sets")[0]


def test_means_of_all_sets_are_shown_side_by_side(tested):
    text = section(report(tested), tested.name).partition("### Test sets")[2]
    means = {}
    for row in rows_of_csv(tested):
        means.setdefault((row["trainer"], row["test_set"]), []).append((float(row["dice"]), float(row["iou"])))
    assert {len(values) for (_, test_set), values in means.items() if test_set} == {7}
    for trainer in (STOCK, OURS):
        cells = [np.mean(means[trainer, name], axis=0) for name in ("", "imagesTs_far", f"{OTHER} imagesTr")]
        line = " | ".join([trainer, *(f"{dice:.3f}<br>IoU {iou:.3f}" for dice, iou in cells)])
        assert f"| {line} |" in text


def recorded(cases: dict[str, str], subset: str = "Tr") -> dict:
    """Return a conversion report of cases with these fingerprints."""
    return {
        "splits": {"groups": []},
        "cases": [
            {"identifier": case, "subset": subset, "image": {"sha256": case, "fingerprint": fingerprint}}
            for case, fingerprint in cases.items()
        ],
    }


def test_cases_that_were_trained_on_are_named(tested):
    trained, other, near = "0f" * 32, "35" * 32, "0f" * 31 + "00"
    (tested.raw / "conversion_report.json").write_text(json.dumps(recorded({"case0": trained})))
    report_of_other = recorded({"far0": other, "far1": near, "far2": ""})
    (tested.raw.parent / OTHER / "conversion_report.json").write_text(json.dumps(report_of_other))
    text = report(tested)
    leaks = "training images of Dataset007_Discs"
    (line,) = (x for x in section(text, f"{tested.name} on {OTHER} imagesTr").splitlines() if leaks in x)
    assert "1 of these cases" in line and line.endswith("far1")
    (line,) = (x for x in section(text, f"{tested.name} on imagesTs_far").splitlines() if leaks in x)
    assert "not known" in line


@pytest.mark.parametrize("content", ["{}", '{"cases": [1]}', '{"cases": [{"identifier": "far0"}]}'])
def test_invalid_conversion_report_is_ignored(tested, content):
    (tested.raw.parent / OTHER / "conversion_report.json").write_text(content)
    assert "is not known" in section(report(tested), f"{tested.name} on {OTHER} imagesTr")


def test_missing_predictions_of_a_test_set_are_named_and_left_out(tested):
    model = tested.results / tested.name / f"{OURS}__nnUNetPlans__2d" / "test_folds_0_1"
    (model / tested.name / "imagesTs_far" / "far3.png").unlink()
    (model / OTHER / "imagesTr" / "summary.json").unlink()
    text = report(tested)
    own, other = (section(text, f"{tested.name} on {name}") for name in ("imagesTs_far", f"{OTHER} imagesTr"))
    assert "far3.png" in own
    assert f"| {STOCK} | 6 |" in own and f"| {OURS} | 6 |" in own
    assert f"not predicted by {OURS}" in other
    assert f"| {STOCK} | 7 |" in other and f"| {OURS} | 7 |" not in other
    whole, _, all_sets = section(text, tested.name).partition("### Test sets")
    assert str(model / OTHER / "imagesTr" / "summary.json") in whole and "not predicted" in all_sets


def test_predictions_of_an_earlier_training_are_left_out(tested):
    model = tested.results / tested.name / f"{OURS}__nnUNetPlans__2d"
    later = (model / "test_folds_0_1" / OTHER / "imagesTr" / "summary.json").stat().st_mtime + 10
    (model / "fold_1" / "checkpoint_final.pth").touch()
    os.utime(model / "fold_1" / "checkpoint_final.pth", (later, later))
    text = report(tested)
    assert f"{OTHER} imagesTr is left out: fold 1" in section(text, tested.name)
    assert f"| {OURS} | 7 |" not in section(text, f"{tested.name} on {OTHER} imagesTr")


def test_unscorable_test_set_does_not_affect_the_others(tested):
    for file in (tested.root / "raw" / OTHER / "labelsTr").iterdir():
        imageio.imwrite(file, np.zeros((5, 5), np.uint8))
    text = report(tested)
    assert f"{tested.name} on {OTHER} imagesTr" in section(text, tested.name)
    assert f"## {tested.name} on {OTHER}" not in text
    assert f"| {OURS} | 7 |" in section(text, f"{tested.name} on imagesTs_far")


def test_ensembles_of_other_folds_are_not_compared(tested):
    small = "nnUNetTrainerMambaMIS_S"
    tested.write_test(small, OTHER, "Tr", predicted(FAR, list(FAR), 2, 9), folds="0")
    for number, fold in enumerate(tested.folds):
        tested.write_fold(small, number, predicted(SHAPES, fold, 2, 8))
    text = report(tested)
    alone = section(text, f"{tested.name} on {OTHER} imagesTr (folds 0)")
    assert f"| {small} | 7 |" in alone and f"| {OURS} | 7 |" not in alone
    lacking = f"not predicted by {STOCK}__nnUNetPlans__2d, {OURS}__nnUNetPlans__2d with folds 0"
    assert lacking in alone
    assert f"| {small} | 7 |" not in section(text, f"{tested.name} on {OTHER} imagesTr (folds 0+1)")


def test_missing_ground_truth_is_named(tested, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    text = report(tested)
    assert f"predictions of {OTHER} imagesTr are left out" in text
    assert {row["test_set"] for row in rows_of_csv(tested)} == {""}
    assert len(CASES) == len({row["case"] for row in rows_of_csv(tested)})

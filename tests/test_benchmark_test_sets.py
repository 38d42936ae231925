"""Test sets and other datasets: predicted by `mamba_mis benchmark run`, in tables of their own in the report."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from benchmark_results import Place, disc, discs, predicted
from nnunet_workplace import write_image, write_label
from small_dataset import NUMBER
from small_dataset import discs as small_discs
from test_benchmark_report import CASES, OURS, SHAPES, STOCK, compared, place, report, rows_of_csv  # noqa: F401
from test_benchmark_run import Benchmark, benchmark, dataset  # noqa: F401

from nnunet_mamba_mis.benchmark.jobs import Prediction, Training
from nnunet_mamba_mis.benchmark.test_sets import TestSet

NAME, OTHER = f"Dataset{NUMBER:03d}_Tiny", "Dataset042_Elsewhere"
FAR = {f"far{i}": shape for i, shape in enumerate(discs([f"far{i}" for i in range(7)], seed=5).values())}


# ------------------------------------------------------------------------------------------- run


@pytest.fixture(scope="module")
def test_sets(nnunet, dataset) -> None:  # noqa: F811
    """A test set of the dataset and another dataset, of two images each."""
    tiny = small_discs(nnunet)
    for name, part in ((NAME, "Ts_far"), (OTHER, "Tr")):
        folder = nnunet.raw / name
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
        for case in ("case0", "case1"):
            image, label = tiny.cases[case]
            write_image(folder / f"images{part}", f"{part}_{case}", image, tiny)
            write_label(folder / f"labels{part}" / f"{part}_{case}.png", label, tiny)
    description = json.loads((nnunet.raw / NAME / "dataset.json").read_text())
    (nnunet.raw / OTHER / "dataset.json").write_text(json.dumps(description))


@pytest.mark.slow
def test_ensembles_predict_test_sets_once_their_folds_are_done(benchmark, test_sets):  # noqa: F811
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "Failing", "--folds", 0, 1, "--jobs", 2, "-device", "cpu"]
    grid += ["--test-sets", "--test-on", 42]
    output = benchmark.run(*grid, status=1)
    assert "8 jobs: 4 done, 2 failed, 2 not begun" in output
    assert re.search(rf"Failing nnUNetPlans 2d folds 0 1 on {OTHER} imagesTr: not begun: fold [01] is not done", output)
    model = benchmark.job("Quick").model_folder
    folders = [model / "test_folds_0_1" / name / part for name, part in ((NAME, "imagesTs_far"), (OTHER, "imagesTr"))]
    for folder in folders:
        assert len(list(folder.glob("*_case?.png"))) == 2
        assert len(json.loads((folder / "summary.json").read_text())["metric_per_case"]) == 2
        log = (folder / "benchmark.log").read_text()
        assert re.search(r"nnUNetv2_predict .* -f 0 1 .* && .*nnUNetv2_evaluate_folder ", log)
    table = benchmark.run("status")
    assert re.search(rf"Quick +0 1 +{OTHER} imagesTr +done +- +[01]\.\d{{3}}", table), table
    # a fold that was trained again makes its ensemble's predictions old
    checkpoint = model / "fold_1" / "checkpoint_final.pth"
    os.utime(checkpoint)
    os.utime(model / "fold_1" / "validation" / "summary.json")
    left = benchmark.run(*grid, "--dry-run").splitlines()
    assert [re.search(r"nnUNetv2_(train|predict)", command)[1] for command in left[:-1]] == ["train"] * 2 + [
        "predict"
    ] * 4


def test_what_cannot_be_tested_on_is_said_before_anything_starts(benchmark, nnunet, test_sets):  # noqa: F811
    for name, change in (
        ("Dataset043_Lesions", {"labels": {"background": 0, "lesion": 1}}),
        ("Dataset044_Rgb", {"channel_names": {"0": "R", "1": "G", "2": "B"}}),
        ("Dataset045_Empty", {}),
    ):
        folder = nnunet.raw / name
        for part in ("imagesTr", "labelsTr") if change else ("imagesTr",):
            (folder / part).mkdir(parents=True)
        description = json.loads((nnunet.raw / NAME / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(description | change))
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "-device", "cpu", "--test-on", 43, 44, 45, 998, NUMBER]
    output = benchmark.run(*grid, status=1)
    assert "labels in dataset.json is {'background': 0, 'polyp': 1} in Dataset041_Tiny and" in output
    assert "Dataset041_Tiny has 1 channels and Dataset044_Rgb 3" in output
    assert "Dataset045_Empty has no imagesTr with labelsTr" in output
    assert "--test-on 998: " in output
    assert f"--test-on: {NAME} is trained on; its test sets are predicted with --test-sets" in output
    assert not list(benchmark.results.iterdir())


def test_prediction_is_found_again_by_its_folder(tmp_path):
    for seed in (None, 3):
        folds = tuple(Training(tmp_path, "Dataset001_A", "T", "P", "2d", fold, seed) for fold in (0, 2))
        job = Prediction(folds, TestSet("Dataset002_B", "imagesTs_x_y"))
        assert Prediction.of_folder(tmp_path, job.folder) == job


def test_prediction_cut_off_by_a_kill_begins_anew(tmp_path):
    job = Prediction((Training(tmp_path, "Dataset001_A", "T", "P", "2d", 0),), TestSet("Dataset002_B", "imagesTr"))
    job.needs[0].folder.mkdir(parents=True)
    (job.needs[0].folder / "checkpoint_final.pth").touch()
    job.folder.mkdir(parents=True)
    (job.folder / "half.png").touch()
    assert not job.is_done() and not job.has_begun()
    job.summary.write_text('{"foreground_mean": {"Dice": 0.5}}')
    assert job.is_done()


# ------------------------------------------------------------------------------------------- report


@pytest.fixture
def tested(compared) -> Place:  # noqa: F811
    """Both trainers, with the predictions of a test set and of another dataset."""
    truths = {case: disc(*shape) for case, shape in FAR.items()}
    compared.write_test_set(compared.name, "Ts_far", truths)
    compared.write_test_set(OTHER, "Tr", truths, splits={"groups": [["far0", "far1", "far2"]]})
    for trainer, error in ((STOCK, 4), (OURS, 1)):
        for name, part in ((compared.name, "Ts_far"), (OTHER, "Tr")):
            compared.write_test(trainer, name, part, predicted(FAR, list(FAR), error, 3))
    return compared


def section(text: str, title: str) -> str:
    """From a heading of level 2 to the next."""
    return re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


def test_each_test_set_has_tables_and_pictures_of_its_own(tested):
    text = report(tested)
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


def test_means_of_all_sets_stand_side_by_side(tested):
    text = section(report(tested), tested.name).partition("### Test sets")[2]
    means = {}
    for row in rows_of_csv(tested):
        means.setdefault((row["trainer"], row["test_set"]), []).append((float(row["dice"]), float(row["iou"])))
    assert {len(values) for (_, test_set), values in means.items() if test_set} == {7}
    for trainer in (STOCK, OURS):
        cells = [np.mean(means[trainer, name], axis=0) for name in ("", "imagesTs_far", f"{OTHER} imagesTr")]
        line = " | ".join([trainer, *(f"{dice:.3f}<br>IoU {iou:.3f}" for dice, iou in cells)])
        assert f"| {line} |" in text


def test_cases_that_were_trained_on_are_named(tested):
    record = {"cases": [{"identifier": "case0", "subset": "Tr", "image": {"sha256": "aa"}}], "splits": {"groups": []}}
    (tested.raw / "conversion_report.json").write_text(json.dumps(record))
    other = {
        "cases": [
            {"identifier": f"far{i}", "subset": "Tr", "image": {"sha256": f"a{'a' * (i == 4)}"}} for i in range(7)
        ]
    }
    (tested.raw.parent / OTHER / "conversion_report.json").write_text(json.dumps(other | {"splits": {"groups": []}}))
    text = report(tested)
    assert "1 of these cases are training images of Dataset007_Discs" in section(
        text, f"{tested.name} on {OTHER} imagesTr"
    )
    assert "training images of" not in section(text, f"{tested.name} on imagesTs_far")


def test_what_is_missing_of_a_test_is_named_and_left_out(tested):
    model = tested.results / tested.name / f"{OURS}__nnUNetPlans__2d" / "test_folds_0_1"
    (model / tested.name / "imagesTs_far" / "far3.png").unlink()
    (model / OTHER / "imagesTr" / "summary.json").unlink()
    text = report(tested)
    own, other = (section(text, f"{tested.name} on {name}") for name in ("imagesTs_far", f"{OTHER} imagesTr"))
    assert "predictions are not there: far3.png" in own
    assert f"| {STOCK} | 6 |" in own and f"| {OURS} | 6 |" in own
    assert "its evaluation has not ended" in other
    assert f"| {STOCK} | 7 |" in other and f"| {OURS} | 7 |" not in other
    assert "not predicted" in section(text, tested.name)


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


def test_ground_truth_that_is_gone_is_named(tested, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    text = report(tested)
    assert f"predictions of {OTHER} imagesTr are left out: there is no folder" in text
    assert [*rows_of_csv(tested)[0]][:2] == ["dataset", "test_set"] and {
        row["test_set"] for row in rows_of_csv(tested)
    } == {""}
    assert len(CASES) == len({row["case"] for row in rows_of_csv(tested)})

"""Test sets and other datasets: predicted by `mamba_mis benchmark run`, in tables of their own in the report."""

from __future__ import annotations

import json
import os
import re

import imageio.v3 as imageio
import numpy as np
import pytest
from test_benchmark_report import CASES, OURS, SHAPES, STOCK, compared, place, report, rows_of_csv  # noqa: F401
from test_benchmark_run import Benchmark, benchmark, dataset  # noqa: F401

from nnunet_mamba_mis.benchmark.running.jobs import Prediction, Training
from nnunet_mamba_mis.benchmark.running.processes import RunningJob, is_running, try_lock
from nnunet_mamba_mis.benchmark.test_sets import TestSet
from support.benchmark_results import Place, disc, discs, predicted
from support.small_dataset import ELSEWHERE, NAME, NUMBER, OTHER, write_elsewhere

FAR = {f"far{i}": shape for i, shape in enumerate(discs([f"far{i}" for i in range(7)], seed=5).values())}


# ------------------------------------------------------------------------------------------- run


@pytest.fixture(scope="module")
def test_sets(nnunet, dataset) -> None:  # noqa: F811
    """A test set of the dataset and another dataset, of two images each."""
    write_elsewhere(nnunet)


@pytest.mark.slow
def test_ensembles_predict_test_sets_once_their_folds_are_done(benchmark, test_sets):  # noqa: F811
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "Failing", "--folds", 0, 1, "--jobs", 2, "-device", "cpu"]
    grid += ["--test-sets", "--test-on", ELSEWHERE]
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
    left = benchmark.run(*grid, "--dry-run").splitlines()[:-1]
    commands = [re.search(r"nnUNetv2_(train|predict)", command)[1] for command in left]
    assert commands == ["train"] * 2 + ["predict"] * 4


def test_what_cannot_be_tested_on_is_said_before_anything_starts(benchmark, nnunet, test_sets):  # noqa: F811
    for name, change in (
        ("Dataset043_Lesions", {"labels": {"background": 0, "lesion": 1}}),
        ("Dataset044_Rgb", {"channel_names": {"0": "R", "1": "G", "2": "B"}}),
        ("Dataset045_Empty", {}),
        ("Dataset046_Unpaired", {"numTraining": 1}),
    ):
        folder = nnunet.raw / name
        for part in ("imagesTr", "labelsTr") if change else ("imagesTr",):
            (folder / part).mkdir(parents=True)
        description = json.loads((nnunet.raw / NAME / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(description | change))
    (nnunet.raw / "Dataset046_Unpaired" / "imagesTr" / "lonely_0000.png").touch()
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "-device", "cpu", "--test-on", 43, 44, 45, 46, 998, NUMBER]
    output = benchmark.run(*grid, status=1)
    assert "labels in dataset.json is {'background': 0, 'polyp': 1} in Dataset041_Tiny and" in output
    assert "channel_names in dataset.json is {'0': 'channel0'} in Dataset041_Tiny and {'0': 'R'," in output
    assert "Dataset046_Unpaired imagesTr: there are no labels of lonely" in output
    assert "Dataset043_Lesions imagesTr: there is no image that ends with _0000.png" in output
    assert "Dataset045_Empty has no imagesTr with labelsTr" in output
    assert "--test-on 998: " in output
    assert f"--test-on: {NAME} is trained on; its test sets are predicted with --test-sets" in output
    assert not list(benchmark.results.iterdir())


def test_prediction_is_found_again_by_its_folder(tmp_path):
    for seed in (None, 3):
        folds = tuple(Training(tmp_path, "Dataset001_A", "T", "P", "2d", fold, seed) for fold in (0, 2))
        job = Prediction(folds, TestSet("Dataset002_B", "imagesTs_x_y"))
        assert Prediction.of_folder(tmp_path, job.folder) == job


@pytest.fixture
def prediction(tmp_path, monkeypatch) -> Prediction:
    """Of three cases, by a fold that is trained."""
    Place(tmp_path, []).write_test_set(OTHER, "Tr", {case: disc(20, 30, 9) for case in ("a", "b", "c")})
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    job = Prediction((Training(tmp_path, "Dataset001_A", "T", "P", "2d", 0),), TestSet(OTHER, "imagesTr"))
    job.needs[0].folder.mkdir(parents=True)
    (job.needs[0].folder / "checkpoint_final.pth").touch()
    job.folder.mkdir(parents=True)
    description = {"labels": {"background": 0, "polyp": 1}, "file_ending": ".png", "channel_names": {"0": "R"}}
    (job.model.model_folder / "dataset.json").write_text(json.dumps(description))
    return job


def evaluated(job: Prediction, cases: str) -> None:
    listed = [{"prediction_file": str(job.folder / f"{case}.png")} for case in cases]
    job.summary.write_text(json.dumps({"metric_per_case": listed}))


def test_interrupted_prediction_keeps_what_is_whole_and_of_these_folds(prediction):
    job = prediction
    for case in ("a", "b", "c", "gone"):
        imageio.imwrite(job.folder / f"{case}.png", disc(20, 30, 9))
    whole = (job.folder / "b.png").read_bytes()
    (job.folder / "b.png").write_bytes(whole[: len(whole) // 2])
    os.utime(job.folder / "c.png", (1, 1))
    evaluated(job, "abc")
    job.prepare()
    assert [file.name for file in job.folder.glob("*.png")] == ["a.png"] and not job.summary.exists()
    assert "--continue_prediction" in job.commands("cpu")[0]


def test_prediction_is_of_all_images_that_are_there(prediction):
    evaluated(prediction, "abc")
    assert prediction.is_done()
    imageio.imwrite(prediction.test_set.labels / "d.png", disc(20, 30, 9))
    assert not prediction.is_done()


def test_second_command_of_a_job_begins_when_the_first_has_ended_well(tmp_path, monkeypatch):
    job = Training(tmp_path, "Dataset001_A", "T", "P", "2d", 0)
    say = "import sys; print('ran', {0}); sys.exit({0})"

    def run(*statuses: int) -> tuple[str, str]:
        commands = [["python", "-c", say.format(status)] for status in statuses]
        monkeypatch.setattr(Training, "commands", lambda job, device: commands)
        running = RunningJob(job, try_lock(job), "cpu", {})
        running.wait()
        return running.finish(), "".join(re.findall(r"^ran (\d)", job.log.read_text(), re.M))

    assert run(0, 3) == ("failed: exit status 3", "03")
    assert run(4, 0) == ("failed: exit status 4", "034")
    assert not is_running(job.folder)


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


def recorded(cases: dict[str, str], subset: str = "Tr") -> dict:
    """A conversion's report of cases with these fingerprints."""
    return {
        "splits": {"groups": []},
        "cases": [
            {"identifier": case, "subset": subset, "image": {"sha256": case, "fingerprint": fingerprint}}
            for case, fingerprint in cases.items()
        ],
    }


def test_cases_that_were_trained_on_are_named(tested):
    one, other, nearly = "0f" * 32, "35" * 32, "0f" * 31 + "00"
    (tested.raw / "conversion_report.json").write_text(json.dumps(recorded({"case0": one})))
    report_of_other = recorded({"far0": other, "far1": nearly, "far2": ""})
    (tested.raw.parent / OTHER / "conversion_report.json").write_text(json.dumps(report_of_other))
    text = report(tested)
    named = (
        "1 of these cases are training images of Dataset007_Discs, or nearly the same, which makes the scores too good"
    )
    assert f"{named}: far1" in section(text, f"{tested.name} on {OTHER} imagesTr")
    unknown = "whether any of these cases are training images of Dataset007_Discs is not known"
    assert unknown in section(text, f"{tested.name} on imagesTs_far")


@pytest.mark.parametrize("content", ["{}", '{"cases": [1]}', '{"cases": [{"identifier": "far0"}]}'])
def test_record_of_another_kind_is_no_record(tested, content):
    (tested.raw.parent / OTHER / "conversion_report.json").write_text(content)
    assert "is not known" in section(report(tested), f"{tested.name} on {OTHER} imagesTr")


def test_what_is_missing_of_a_test_is_named_and_left_out(tested):
    model = tested.results / tested.name / f"{OURS}__nnUNetPlans__2d" / "test_folds_0_1"
    (model / tested.name / "imagesTs_far" / "far3.png").unlink()
    (model / OTHER / "imagesTr" / "summary.json").unlink()
    text = report(tested)
    own, other = (section(text, f"{tested.name} on {name}") for name in ("imagesTs_far", f"{OTHER} imagesTr"))
    assert "predictions are not there: far3.png" in own
    assert f"| {STOCK} | 6 |" in own and f"| {OURS} | 6 |" in own
    assert f"not predicted by {OURS}" in other
    assert f"| {STOCK} | 7 |" in other and f"| {OURS} | 7 |" not in other
    whole = section(text, tested.name)
    assert "its evaluation has not ended" in whole and "not predicted" in whole.partition("### Test sets")[2]


def test_predictions_of_an_earlier_training_are_left_out(tested):
    model = tested.results / tested.name / f"{OURS}__nnUNetPlans__2d"
    later = (model / "test_folds_0_1" / OTHER / "imagesTr" / "summary.json").stat().st_mtime + 10
    (model / "fold_1" / "checkpoint_final.pth").touch()
    os.utime(model / "fold_1" / "checkpoint_final.pth", (later, later))
    text = report(tested)
    assert "imagesTr is left out: fold 1 was trained again since" in section(text, tested.name)
    assert f"| {OURS} | 7 |" not in section(text, f"{tested.name} on {OTHER} imagesTr")


def test_test_set_that_cannot_be_scored_does_not_keep_the_rest(tested):
    for file in (tested.root / "raw" / OTHER / "labelsTr").iterdir():
        imageio.imwrite(file, np.zeros((5, 5), np.uint8))
    text = report(tested)
    assert f"{tested.name} on {OTHER} imagesTr: the models have no case in common" in section(text, tested.name)
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


def test_ground_truth_that_is_gone_is_named(tested, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    text = report(tested)
    assert f"predictions of {OTHER} imagesTr are left out: there is no folder" in text
    assert [*rows_of_csv(tested)[0]][:2] == ["dataset", "test_set"] and {
        row["test_set"] for row in rows_of_csv(tested)
    } == {""}
    assert len(CASES) == len({row["case"] for row in rows_of_csv(tested)})

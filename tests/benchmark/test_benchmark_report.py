"""`mamba_mis benchmark report` on result folders as nnU-Net leaves them."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest

from nnunet_mamba_mis.benchmark.reporting.report import make_report
from nnunet_mamba_mis.cli.main import main
from support.benchmark_results import Place, disc, discs, log_of_epoch, predicted

CASES = [f"case{i}" for i in range(8)]
STOCK, OURS = "nnUNetTrainer", "nnUNetTrainerMambaMIS"
SHAPES = discs(CASES)


def write_folds(place: Place, trainer: str, error: float, random: int = 0, **options) -> None:
    for number, fold in enumerate(place.folds):
        place.write_fold(trainer, number, predicted(SHAPES, fold, error, random), **options)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    """A dataset of eight cases, two of them frames of one sequence; nothing is trained."""
    found = Place(tmp_path, [CASES[::2], CASES[1::2]])
    found.write_dataset({case: disc(*shape) for case, shape in SHAPES.items()}, groups=[["case0", "case2"]])
    for name, value in found.variables.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def compared(place) -> Place:
    """The dataset with both folds of two trainers."""
    write_folds(place, STOCK, 3)
    write_folds(place, OURS, 1, random=1)
    return place


def report(place: Place, *arguments: object) -> str:
    """Run the command, and return report.md."""
    output = place.root / "report"
    assert main(["benchmark", "report", "-d", "7", "-o", str(output), *map(str, arguments)]) == 0
    return (output / "report.md").read_text()


def refused(capsys, *arguments: object) -> str:
    assert main(["benchmark", "report", "-d", "7", *map(str, arguments)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("mamba_mis: error: ")
    return message


def rows_of_csv(place: Place) -> list[dict[str, str]]:
    with (place.root / "report" / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------- what is written


def test_the_page_needs_no_other_file_and_no_network(compared):
    report(compared)
    page = (compared.root / "report" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page and "<script" not in page and "url(" not in page


def test_figures_are_there_as_png_and_svg(compared):
    text = report(compared)
    pictures = re.findall(r"\]\((\S+\.png)\)", text)
    assert [name.split("_")[-1] for name in pictures] == [
        "differences.png", "cost.png", "training.png", "overlays.png"
    ]  # fmt: skip
    for name in pictures:
        assert (compared.root / "report" / name).read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (compared.root / "report" / name).with_suffix(".svg").read_text()


def test_pictures_of_cases_can_be_left_out(compared):
    text = report(compared, "--no-overlays")
    assert "overlays" not in text and not list((compared.root / "report").glob("*overlays*"))
    assert "differences.png" in text


def test_the_table_of_cases_has_a_row_for_each_prediction(compared):
    report(compared)
    rows = rows_of_csv(compared)
    assert [(row["trainer"], row["case"]) for row in rows] == [
        (trainer, case) for trainer in (STOCK, OURS) for case in CASES[::2] + CASES[1::2]
    ]
    assert {row["group"] for row in rows if row["case"] in ("case0", "case2")} == {"case0"}
    truth, prediction = disc(*SHAPES["case3"]) > 0, predicted(SHAPES, CASES, 3, 0)["case3"] > 0
    (row,) = (row for row in rows if (row["trainer"], row["case"]) == (STOCK, "case3"))
    assert (row["dataset"], row["fold"], row["seed"], row["class"]) == ("Dataset007_Discs", "1", "", "polyp")
    assert int(row["tp"]) == (truth & prediction).sum()
    assert float(row["dice"]) == pytest.approx(2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()), 1e-5)


def test_tables_have_the_means_of_the_cases(compared):
    text = report(compared)
    for trainer in (STOCK, OURS):
        values = {row["case"]: float(row["dice"]) for row in rows_of_csv(compared) if row["trainer"] == trainer}
        line = f"| {trainer} | 8 | {np.mean([*values.values()]):.3f} ± {np.std([*values.values()], ddof=1):.3f}<br>["
        assert line in text
        first = np.mean([values[case] for case in compared.folds[0]])
        assert f"| {trainer} | {first:.3f} |" in text


def test_trainers_are_compared_over_groups(compared):
    text = report(compared)
    assert "8 cases in 7 groups, folds 0, 1, baseline nnUNetTrainer." in text
    higher, lower, equal = map(int, re.search(rf"{OURS}<br>less {STOCK} .*? (\d) / (\d) / (\d) \|", text).groups())
    assert higher + lower + equal == 7
    assert f"{OURS} against {STOCK}: Dice +" in text


def test_a_single_trainer_is_scored_but_not_tested(place):
    write_folds(place, OURS, 1)
    text = report(place)
    assert "There are no two models with scores on the same cases, so nothing is tested." in text
    assert "p (Holm)" not in text and "Wilcoxon" not in text
    assert f"| {OURS} | 8 |" in text


@pytest.mark.slow
def test_the_same_results_give_the_same_files_also_in_parallel(compared):
    report(compared)
    folder = compared.root / "report"
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    report(compared, "-np", 2)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_the_first_trainer_named_is_the_baseline(compared):
    assert f"baseline {OURS}" in report(compared, "--trainers", OURS, STOCK)


def test_seeds_are_averaged_case_by_case(place):
    for seed in ("1", "2"):
        write_folds(place, STOCK, 3, random=int(seed), seed=seed)
    text = report(place)
    assert "8 cases in 7 groups, folds 0, 1, seeds 1, 2" in text
    rows = rows_of_csv(place)
    assert len(rows) == 16
    assert f"| {STOCK} | 8 | {np.mean([float(row['dice']) for row in rows]):.3f} ± " in text
    assert "One seed" not in text


def test_seeds_that_only_some_models_have_are_left_out_and_named(compared):
    write_folds(compared, OURS, 1, random=5, seed="1")
    text = report(compared)
    assert f"⚠ {STOCK}__nnUNetPlans__2d of seed 1: no validated fold 0, 1 of 2" in text
    assert f"⚠ 8 of 16 predictions of {OURS}__nnUNetPlans__2d are left out of every table" in text
    assert {row["seed"] for row in rows_of_csv(compared)} == {""}


def test_costs_given_by_others_are_shown_beside_accuracy(compared):
    def measure(dataset, models):
        return {"parameters": {str(model): 33.5e6 for model in models}} if dataset == "Dataset007_Discs" else {}

    make_report(["7"], None, None, compared.root / "report", 2.0, measure=measure)
    text = (compared.root / "report" / "report.md").read_text()
    assert f"| {STOCK} | 12.5 | 0.0208 | 33.5 M | cpu, workstation |" in text


# ------------------------------------------------------------------------------------------- what is shown


def test_cases_are_shown_by_rule(compared):
    from nnunet_mamba_mis.benchmark.evaluation import folds as results
    from nnunet_mamba_mis.benchmark.evaluation.scores import score_all
    from nnunet_mamba_mis.benchmark.reporting import overlay_cases

    truth = results.find_truth("7", compared.root / "raw", compared.root / "preprocessed")
    found = results.find_folds(truth, [compared.results])
    scores = score_all(truth, found, 2, 1, lambda line: None)
    stock, ours = (scores.values(model, "dice", "polyp") for model in found.models)
    chosen = overlay_cases.choose(scores, results.short_names(found.models), "polyp")
    ordered = sorted(stock, key=stock.get)
    assert [case for _, case in chosen[:5]] == [ordered[i] for i in (0, 1, 3, 5, 7)]
    gains = sorted(CASES, key=lambda case: ours[case] - stock[case])
    assert chosen[5:] == [(f"largest gain of {OURS}", gains[-1]), (f"largest loss of {OURS}", gains[0])]


def test_pictures_can_be_made_without_the_images(compared):
    shutil.rmtree(compared.raw / "imagesTr")
    report(compared)
    assert (compared.root / "report" / "Dataset007_Discs_overlays.png").is_file()


# ------------------------------------------------------------------------------------------- empty masks


def test_empty_masks_are_counted(place):
    truths = {case: disc(*shape) for case, shape in SHAPES.items()}
    truths["case0"][:] = truths["case2"][:] = 0
    place.write_dataset(truths)
    first, second = ({case: truths[case] for case in fold} for fold in place.folds)
    place.write_fold(STOCK, 0, {**first, "case2": disc(20, 20, 4)})
    place.write_fold(STOCK, 1, {**second, "case1": 0 * truths["case1"]})
    text = report(place)
    assert f"| {STOCK} | 8 | 1 | 1 | 1 |" in text
    (neither,) = (row for row in rows_of_csv(place) if row["case"] == "case0")
    assert neither["dice"] == neither["hd95"] == neither["specificity"] == ""
    # five perfect cases, a miss and an invention
    assert f"| {STOCK} | 7 | {5 / 7:.3f} ±" in text
    diagonal = math.hypot(48, 64)
    assert {row["hd95"] for row in rows_of_csv(place)} == {"", "0", f"{diagonal:.6g}"}


# ------------------------------------------------------------------------------------------- missing and unfair


def test_a_missing_fold_is_named_and_all_models_compared_without_it(compared):
    shutil.rmtree(compared.results / compared.name / f"{OURS}__nnUNetPlans__2d" / "fold_1")
    text = report(compared)
    assert f"⚠ {OURS}__nnUNetPlans__2d: no validated fold 1 of 2" in text
    assert f"⚠ 4 of 8 predictions of {STOCK}__nnUNetPlans__2d are left out of every table" in text
    assert f"| {STOCK} | 4 |" in text and f"| {OURS} | 4 |" in text


@pytest.mark.parametrize("broken", ["missing", "truncated", "smaller"])
def test_a_prediction_that_cannot_be_used_is_left_out_for_all_models(compared, broken):
    file = compared.results / compared.name / f"{OURS}__nnUNetPlans__2d" / "fold_0" / "validation" / "case4.png"
    if broken == "missing":
        file.unlink()
    elif broken == "truncated":
        file.write_bytes(file.read_bytes()[:40])
    else:
        import imageio.v3 as imageio

        imageio.imwrite(file, disc(5, 5, 3, (20, 30)))
    text = report(compared)
    named = "summary.json lists predictions that are not there: case4.png" if broken == "missing" else "case4.png"
    assert named in text
    assert "1 of 8 predictions of nnUNetTrainer__nnUNetPlans__2d are left out of every table" in text
    assert "case4 (fold 0)" in text
    assert "case4" not in {row["case"] for row in rows_of_csv(compared)}


def test_a_validation_that_has_not_ended_is_left_out(compared):
    summary = compared.results / compared.name / f"{OURS}__nnUNetPlans__2d" / "fold_0" / "validation" / "summary.json"
    summary.unlink()
    assert f"fold_0 is left out: it has no {summary}, so its validation has not ended" in report(compared)
    summary.write_text('{"metric_per_')
    assert f"fold_0 is left out: {summary} cannot be read" in report(compared)


def test_cases_of_another_split_are_left_out(compared):
    splits = [
        {"train": [], "val": fold} for fold in (["case0", "case2", "case4", "case1"], ["case3", "case5", "case7"])
    ]
    (compared.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    text = report(compared)
    assert "fold_0: cases of splits_final.json were not predicted: case1" in text
    assert "does not have in this fold are left out, as it may have been trained on them: case6" in text
    assert f"| {STOCK} | 6 |" in text


def test_settings_that_differ_are_named(place):
    write_folds(place, STOCK, 3)
    write_folds(place, OURS, 1, settings={"batch_size": 24, "num_epochs": 300})
    text = report(place)
    assert f"⚠ batch size differs: {STOCK}__nnUNetPlans__2d 2, {OURS}__nnUNetPlans__2d 24" in text
    assert f"number of epochs differs: {STOCK}__nnUNetPlans__2d 3, {OURS}__nnUNetPlans__2d 300" in text
    assert f"{OURS}__nnUNetPlans__2d fold 0 was validated after 3 of 300 epochs" in text
    assert "patch size differs" not in text


def test_other_plans_are_another_model(place):
    write_folds(place, STOCK, 3)
    write_folds(place, STOCK, 2, plans="nnUNetResEncUNetMPlans")
    text = report(place)
    assert f"| {STOCK}<br>nnUNetResEncUNetMPlans | 8 |" in text


def test_an_epoch_that_was_repeated_is_counted_in_time_but_drawn_once(compared):
    from nnunet_mamba_mis.benchmark.evaluation import folds as results
    from nnunet_mamba_mis.benchmark.evaluation.settings import read_training

    truth = results.find_truth("7", compared.root / "raw", compared.root / "preprocessed")
    fold = results.find_folds(truth, [compared.results]).folds[0]
    (fold.folder / "training_log_2026_1_2_00_00_00.txt").write_text(log_of_epoch(2, 20))
    training = read_training(fold)
    assert [epoch.number for epoch in training.epochs] == [0, 1, 2]
    assert training.seconds == 3 * 12.5 + 20


# ------------------------------------------------------------------------------------------- refused


def test_a_trainer_without_results_is_refused(compared, capsys):
    message = refused(capsys, "--trainers", "nnUNetTrainerMamba")
    assert "--trainers nnUNetTrainerMamba: Dataset007_Discs has no validated fold of it" in message
    assert f"there are results of {STOCK}, {OURS}" in message


def test_models_without_a_case_in_common_are_refused(place, capsys):
    place.write_fold(STOCK, 0, predicted(SHAPES, place.folds[0], 1, 0))
    place.write_fold(OURS, 1, predicted(SHAPES, place.folds[1], 1, 0))
    message = refused(capsys, "-o", place.root / "report")
    assert "have no case in common" in message
    assert f"{STOCK}__nnUNetPlans__2d: folds 0; {OURS}__nnUNetPlans__2d: folds 1" in message
    assert not (place.root / "report" / "report.html").exists()


def test_a_fold_that_is_there_twice_is_refused(compared, capsys):
    copy = compared.root / "copy"
    shutil.copytree(compared.results, copy)
    assert "is there twice" in refused(capsys, "--results", compared.results, copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "/nowhere"], "there is no folder /nowhere"),
        (["--tolerance", "-1"], "--tolerance -1"),
        (["-np", "0"], "-np 0"),
        (["-d", "8"], "-d 8: there is no such folder"),
        (["-o", "/dev/null/report"], "-o /dev/null/report: the folder cannot be made"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be_used_are_refused(compared, capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_a_dataset_without_results_is_refused_with_the_reason(place, capsys):
    folder = place.write_fold(STOCK, 0, predicted(SHAPES, place.folds[0], 1, 0))
    folder.rename(folder.with_name("fold_all"))
    message = refused(capsys)
    assert "Dataset007_Discs has no validated fold" in message
    assert "fold_all is left out: it was trained on all cases" in message

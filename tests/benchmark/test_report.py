"""`mamba_mis benchmark report` on results as nnU-Net writes them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from urllib.parse import unquote

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_mamba_mis.benchmark.evaluation.evaluate import evaluate_datasets
from nnunet_mamba_mis.benchmark.evaluation.folds import find_folds, find_truth
from nnunet_mamba_mis.benchmark.evaluation.statistics import compare_all, estimate
from nnunet_mamba_mis.benchmark.evaluation.training_records import read_training
from nnunet_mamba_mis.benchmark.reporting import figures, overlay_cases
from nnunet_mamba_mis.benchmark.reporting.document import Heading, Table, Text, Warnings, to_html, to_markdown
from nnunet_mamba_mis.benchmark.reporting.report import make_report
from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.nnunet.logs import Epoch
from support.benchmark_results import (
    CASES,
    OURS,
    SHAPES,
    STOCK,
    Place,
    discs,
    log_of_epoch,
    predicted,
    report,
    rows_of_csv,
    undrawn,
    write_folds,
)
from support.images import disc


def refused(capsys, *arguments: object) -> str:
    """Run a report command, assert that it fails with status 1, and return its error message."""
    assert main(["benchmark", "report", "-d", "7", *map(str, arguments)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("mamba_mis: error: ")
    return message


def warning(text: str, *words: str) -> str:
    """Return the only warning in report.md that contains these words."""
    (line,) = (line for line in text.splitlines() if line.startswith("- ⚠") and all(word in line for word in words))
    return line


# ------------------------------------------------------------------------------------------- output files


def test_figures_are_files_but_the_page_is_self_contained(compared):
    text = report(compared, pictures="drawn")
    pictures = re.findall(r"\]\((\S+\.png)\)", text)
    assert [name.split("_")[-1] for name in pictures] == [
        "differences.png", "cost.png", "training.png", "overlays.png"
    ]  # fmt: skip
    for name in pictures:
        assert (compared.root / "report" / name).read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (compared.root / "report" / name).with_suffix(".svg").read_text()
    page = (compared.root / "report" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page and "<script" not in page and "url(" not in page


def test_words_of_the_report(tested):
    """Compare the text outside tables, with # for numbers, to `report_words.md`; write that file if it is missing."""
    expected = Path(__file__).with_name("report_words.md")
    lines = [
        line
        for line in report(tested, pictures="undrawn").splitlines()
        if line and line[0] != "|" and "Made with" not in line
    ]
    words = re.sub(r"(?<![\w.])[+-]?\d+(?:[.,]\d+)*", "#", "\n".join(lines)) + "\n"
    words = words.replace(str(tested.root), "ROOT")
    if not expected.exists():
        expected.write_text(words)
        pytest.fail(f"wrote {expected}: read it, and run this test again")
    assert words == expected.read_text()


def test_texts_are_data():
    blocks = [
        Heading(1, "<b>"),
        Text("a & `<i>`\n\x1b"),
        Warnings(["x < y"]),
        Warnings([]),
        Table(["", "a|b"], [["first\nsecond <", "1"]]),
    ]
    page = to_html("<title>", blocks)
    for part in (
        "<title>&lt;title&gt;</title>",
        "<h1>&lt;b&gt;</h1>",
        "<p>a &amp; `&lt;i&gt;`\\n\\x1b</p>",
        "<li>x &lt; y</li>",
        "<td>first<br><small>second &lt;</small></td><td>1</td>",
    ):
        assert part in page
    assert page.count('class="warning"') == 1
    table = "|  | a\\|b |\n| --- | ---: |\n| first<br>second < | 1 |"
    assert to_markdown(blocks) == f"# \\<b>\n\na & \\`\\<i>\\`\\\\n\\\\x1b\n\n- ⚠ x < y\n\n{table}\n"


ODD = ["a$x_{$", "=HYPERLINK(1)", "[b]*|`c`_d_", "<b>x&amp;", "esc\x1b[31m\u202e", "newl\nine", "患者 😀", "x" * 200]


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A dataset, cases, trainers and a machine whose names contain markup and control characters."""
    place = Place(tmp_path, [ODD[::2], ODD[1::2]], name="Dataset007_D[i]scs_$x^$")
    for variable, value in place.variables.items():
        monkeypatch.setenv(variable, value)
    shapes = discs(ODD)
    place.write_dataset({case: disc(*shape) for case, shape in shapes.items()})
    for trainer, error in ((STOCK, 3), ("_Odd$tr_{`x", 1)):
        for number, fold in enumerate(place.folds):
            predictions = predicted(shapes, fold, error, 1)
            place.write_fold(trainer, number, predictions, settings={"gpu_name": "GPU\x1b[0m|<i>"})
    return place


def test_names_are_escaped_everywhere(odd, capsys):
    image = odd.raw / "imagesTr" / f"{ODD[0]}_0000.png"
    image.write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = report(odd, pictures="drawn")
    page = (odd.root / "report" / "report.html").read_text()
    terminal = capsys.readouterr()
    # the picture shows the remaining images, and a warning names the missing one
    assert len(re.findall(r'src="data:image/png', page)) == 4
    assert warning(text, "is shown on grey", "cannot be read") and str(image) in terminal.err
    for shown in (text, page, terminal.out, terminal.err):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", shown)
    assert "GPU\\x1b[0m|&lt;i&gt;" in page and "<i>" not in page
    assert "GPU\\\\x1b[0m\\|\\<i>" in text
    for target in re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", text):
        assert (odd.root / "report" / unquote(target)).is_file()
    cases = {row["case"] for row in rows_of_csv(odd)}
    assert {case.removeprefix("'") for case in cases} == set(ODD)
    assert not any(case.startswith(("=", "+", "-", "@")) for case in cases)


@pytest.mark.parametrize("name", ["Dataset007_Di[sc]s", "7"])
def test_a_dataset_is_found_by_its_exact_name(compared, name):
    for folder in (compared.raw, compared.preprocessed, compared.results / compared.name):
        folder.rename(folder.with_name("Dataset007_Di[sc]s"))
    assert "Dataset007_Di[sc]s" in report(compared, dataset=name)


def test_a_failed_figure_becomes_a_warning_and_the_rest_is_written(compared, capsys):
    blocked = compared.root / "report" / "Dataset007_Discs_cost.png"
    blocked.mkdir(parents=True)
    (blocked / "file").touch()
    text = report(compared, pictures="undrawn")
    assert warning(text, blocked.name) and blocked.name in capsys.readouterr().err
    assert len(re.findall(r"\]\(\S+\.png\)", text)) == 3 and len(rows_of_csv(compared)) == 16


@pytest.mark.parametrize("broken", ["missing", "another size", "16 bits of colour"])
def test_every_image_is_shown_or_named(compared, broken):
    folder = compared.raw / "imagesTr"
    if broken == "missing":
        shutil.rmtree(folder)
    for file in folder.glob("*") if broken != "missing" else ():
        pixels = imageio.imread(file)[: 20 if broken == "another size" else None]
        dark = sitk.GetImageFromArray(pixels.astype(np.uint16) * 16, isVector=True)
        sitk.WriteImage(dark if broken != "another size" else sitk.GetImageFromArray(pixels, isVector=True), str(file))
    (dataset,) = evaluate_datasets(["7"], [compared.results], None, 2, 1, None)
    found = dataset.validated
    arguments = found.truth, found.fold_set.folds, found.scores, list(found.names)
    panels, problems = overlay_cases.panels([("why", case) for case in CASES], *arguments)
    assert len(panels) == 8
    if broken == "16 bits of colour":
        assert not problems
        assert all(np.ptp(panel.image) == 255 and panel.image.shape == (48, 64, 3) for panel in panels)
    else:
        assert [problem.split()[1] for problem in problems] == CASES
        assert all(str(folder / f"{case}_0000.png") in problem for case, problem in zip(CASES, problems, strict=True))


def test_a_prediction_that_disappears_after_scoring_is_named(compared):
    (dataset,) = evaluate_datasets(["7"], [compared.results], None, 2, 1, None)
    found = dataset.validated
    found.fold_set.folds[0].predictions["case2"].unlink()
    arguments = found.truth, found.fold_set.folds, found.scores, list(found.names)
    panels, (problem,) = overlay_cases.panels([("why", "case2"), ("why", "case4")], *arguments)
    assert [panel.case for panel in panels] == ["case4"] and "case2.png" in problem


def test_coloured_label_maps_are_not_scored_by_their_red_channel(compared):
    file = compared.results / compared.name / f"{OURS}__nnUNetPlans__2d" / "fold_0" / "validation" / "case4.png"
    imageio.imwrite(file, np.stack([imageio.imread(file)] * 3, axis=-1))
    assert warning(report(compared), "case4.png", "cannot be read")


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_figures_of_degenerate_values_are_drawn(tmp_path, value):
    (pair,) = compare_all({"a": {"x": 0.5}, "b": {"x": 0.7}}, {})
    epochs = {"_a": [[Epoch(0, value, value, (value,), value)]]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.draw_cost({"_a": estimate({"x": value}, {})}, {"seconds": {"_a": value}}, tmp_path / "cost.png")
        figures.draw_training_curves(epochs, tmp_path / "training.png")
        differences = {"b": (pair, {"x": value if math.isfinite(value) else math.nan})}
        figures.draw_paired_differences(differences, "Dice", "a", tmp_path / "differences.png")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_pictures_of_cases_can_be_left_out(compared):
    text = report(compared)
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


def test_tables_show_the_means_over_cases(compared):
    text = report(compared)
    for trainer in (STOCK, OURS):
        values = {row["case"]: float(row["dice"]) for row in rows_of_csv(compared) if row["trainer"] == trainer}
        line = f"| {trainer} | 8 | {np.mean([*values.values()]):.3f} ± {np.std([*values.values()], ddof=1):.3f}<br>["
        assert line in text
        first = np.mean([values[case] for case in compared.folds[0]])
        assert f"| {trainer} | {first:.3f} |" in text


def test_trainers_are_compared_over_groups(compared):
    text = report(compared)
    assert "8 cases in 7 groups" in text
    higher, lower, equal = map(int, re.search(rf"{OURS}<br>minus {STOCK} .*? (\d) / (\d) / (\d) \|", text).groups())
    assert higher + lower + equal == 7


def test_a_single_trainer_is_scored_but_not_tested(place):
    write_folds(place, OURS, 1)
    text = report(place)
    assert "p (Holm)" not in text and "Wilcoxon" not in text
    assert f"| {OURS} | 8 |" in text


@pytest.mark.slow
def test_the_same_results_give_the_same_files_even_in_parallel(compared):
    report(compared, pictures="drawn")
    folder = compared.root / "report"
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    report(compared, "-np", 2, pictures="drawn")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_the_first_trainer_named_is_the_baseline(compared):
    assert f"baseline {OURS}" in report(compared, "--trainers", OURS, STOCK)


def test_seeds_are_averaged_case_by_case(place):
    for seed in ("1", "2"):
        write_folds(place, STOCK, 3, random=int(seed), seed=seed)
    text = report(place)
    assert "seeds 1, 2" in text
    rows = rows_of_csv(place)
    assert len(rows) == 16
    assert f"| {STOCK} | 8 | {np.mean([float(row['dice']) for row in rows]):.3f} ± " in text
    assert "One seed" not in text


def test_seeds_that_only_some_models_have_are_left_out_and_named(compared):
    write_folds(compared, OURS, 1, random=5, seed="1")
    text = report(compared)
    assert "0, 1 of 2" in warning(text, f"{STOCK}__nnUNetPlans__2d of seed 1")
    assert warning(text, f"8 of 16 predictions of {OURS}__nnUNetPlans__2d")
    assert {row["seed"] for row in rows_of_csv(compared)} == {""}


def test_measured_costs_are_shown(compared):
    def measure(dataset, models):
        return {"parameters": dict.fromkeys(models, 33.5e6)} if dataset == "Dataset007_Discs" else {}

    with undrawn():
        make_report(["7"], None, None, compared.root / "report", 2.0, measure=measure)
    text = (compared.root / "report" / "report.md").read_text()
    assert f"| {STOCK} | 12.5 | 0.0208 | 33.5 M | cpu, workstation |" in text


# ------------------------------------------------------------------------------------------- cases shown


def test_cases_are_shown_by_rule(compared):
    (dataset,) = evaluate_datasets(["7"], [compared.results], None, 2, 1, None)
    stock, ours = dataset.validated.values("dice").values()
    chosen = overlay_cases.choose(dataset.validated.scores, dataset.validated.names, "polyp")
    ordered = sorted(stock, key=stock.get)
    assert [case for _, case in chosen[:5]] == [ordered[i] for i in (0, 1, 3, 5, 7)]
    gains = sorted(CASES, key=lambda case: ours[case] - stock[case])
    assert chosen[5:] == [(f"largest gain of {OURS}", gains[-1]), (f"largest loss of {OURS}", gains[0])]


def test_overlays_are_drawn_without_the_images(compared):
    shutil.rmtree(compared.raw / "imagesTr")
    report(compared, pictures="undrawn")
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
    # five perfect cases, one missed and one spurious
    assert f"| {STOCK} | 7 | {5 / 7:.3f} ±" in text
    diagonal = math.hypot(48, 64)
    assert {row["hd95"] for row in rows_of_csv(place)} == {"", "0", f"{diagonal:.6g}"}


# ------------------------------------------------------------------------------------------- missing or not comparable


def test_a_missing_fold_is_named_and_all_models_compared_without_it(compared):
    shutil.rmtree(compared.results / compared.name / f"{OURS}__nnUNetPlans__2d" / "fold_1")
    text = report(compared)
    assert warning(text, f"{OURS}__nnUNetPlans__2d: ", "fold 1 of 2")
    assert warning(text, f"4 of 8 predictions of {STOCK}__nnUNetPlans__2d")
    assert f"| {STOCK} | 4 |" in text and f"| {OURS} | 4 |" in text


@pytest.mark.parametrize("broken", ["missing", "truncated", "smaller"])
def test_a_prediction_that_cannot_be_used_is_left_out_for_all_models(compared, broken):
    file = compared.results / compared.name / f"{OURS}__nnUNetPlans__2d" / "fold_0" / "validation" / "case4.png"
    if broken == "missing":
        file.unlink()
    elif broken == "truncated":
        file.write_bytes(file.read_bytes()[:40])
    else:
        imageio.imwrite(file, disc(5, 5, 3, (20, 30)))
    text = report(compared)
    assert warning(text, f"{OURS}__nnUNetPlans__2d fold", "case4.png")
    assert warning(text, f"1 of 8 predictions of {STOCK}__nnUNetPlans__2d", "case4 (fold 0)")
    assert "case4" not in {row["case"] for row in rows_of_csv(compared)}


def test_an_unfinished_validation_is_left_out(compared):
    summary = compared.results / compared.name / f"{OURS}__nnUNetPlans__2d" / "fold_0" / "validation" / "summary.json"
    summary.unlink()
    assert warning(report(compared), "fold_0", str(summary))
    for broken in ('{"metric_per_', "{}"):
        summary.write_text(broken)
        assert warning(report(compared), "fold_0", f"{summary} cannot be read")


def test_cases_of_another_split_are_left_out(compared):
    splits = [
        {"train": [], "val": fold} for fold in (["case0", "case2", "case4", "case1"], ["case3", "case5", "case7"])
    ]
    (compared.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    text = report(compared)
    assert warning(text, f"{STOCK}__", "fold_0", "not predicted", "case1")
    assert warning(text, f"{STOCK}__", "fold_0", "left out", "case6")
    assert f"| {STOCK} | 6 |" in text


def test_settings_that_differ_are_named(place):
    write_folds(place, STOCK, 3)
    write_folds(place, OURS, 1, settings={"batch_size": 24, "num_epochs": 300})
    text = report(place)
    assert f"{STOCK}__nnUNetPlans__2d 2, {OURS}__nnUNetPlans__2d 24" in warning(text, "batch size differs")
    assert f"{STOCK}__nnUNetPlans__2d 3, {OURS}__nnUNetPlans__2d 300" in warning(text, "number of epochs differs")
    assert warning(text, f"{OURS}__nnUNetPlans__2d fold 0", "3 of 300 epochs")
    assert "patch size differs" not in text


def test_other_plans_are_another_model(place):
    write_folds(place, STOCK, 3)
    write_folds(place, STOCK, 2, plans="nnUNetResEncUNetMPlans")
    text = report(place)
    assert f"| {STOCK}<br>nnUNetResEncUNetMPlans | 8 |" in text


def test_an_epoch_that_was_repeated_is_counted_in_time_but_drawn_once(compared):
    truth = find_truth("7", compared.root / "raw", compared.root / "preprocessed")
    fold = find_folds(truth, [compared.results]).folds[0]
    (fold.folder / "training_log_2026_1_2_00_00_00.txt").write_text(log_of_epoch(2, 20))
    training = read_training(fold)
    assert [epoch.number for epoch in training.epochs] == [0, 1, 2]
    assert training.seconds == 3 * 12.5 + 20


def relabel(place, labels: dict[str, object]) -> None:
    for folder in (place.raw, place.preprocessed):
        description = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(description | {"labels": labels}))


@pytest.mark.parametrize("polyp", ["1", 1.0, True, [1]], ids=repr)
def test_labels_are_read_in_every_notation(compared, polyp):
    report(compared)
    expected = rows_of_csv(compared)
    relabel(compared, {"background": "0", "polyp": polyp})
    report(compared)
    assert rows_of_csv(compared) == expected and len(expected) == 2 * len(compared.cases)


# ------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("labels", [{"0": "background", "1": "polyp"}, {"background": 0, "polyp": "one"}, {"polyp": 1}])
def test_invalid_labels_are_refused(compared, capsys, labels):
    relabel(compared, labels)
    message = refused(capsys, "-o", compared.root / "report")
    assert f"{compared.preprocessed / 'dataset.json'} cannot be read: labels: " in message and message.count("\n") == 1
    assert not (compared.root / "report" / "report.html").exists()


def test_a_trainer_without_results_is_refused(compared, capsys):
    message = refused(capsys, "--trainers", "nnUNetTrainerMamba")
    assert "--trainers nnUNetTrainerMamba: Dataset007_Discs" in message
    assert f"{STOCK}, {OURS}" in message


def test_models_without_a_case_in_common_are_refused(place, capsys):
    place.write_fold(STOCK, 0, predicted(SHAPES, place.folds[0], 1, 0))
    place.write_fold(OURS, 1, predicted(SHAPES, place.folds[1], 1, 0))
    message = refused(capsys, "-o", place.root / "report")
    assert f"{STOCK}__nnUNetPlans__2d: folds 0; {OURS}__nnUNetPlans__2d: folds 1" in message
    assert not (place.root / "report" / "report.html").exists()


def test_a_duplicate_fold_is_refused(compared, capsys):
    copy = compared.root / "copy"
    shutil.copytree(compared.results, copy)
    message = refused(capsys, "--results", compared.results, copy)
    assert str(compared.results) in message and str(copy) in message and "fold 0" in message


@pytest.mark.parametrize(
    "arguments",
    ["--results /nowhere", "--tolerance -1", "-np 0", "-d 8", "-o /dev/null/report"],
)
def test_invalid_arguments_are_refused(compared, capsys, arguments):
    assert arguments in refused(capsys, *arguments.split())


def test_a_dataset_without_results_is_refused_with_the_reason(place, capsys):
    folder = place.write_fold(STOCK, 0, predicted(SHAPES, place.folds[0], 1, 0))
    folder.rename(folder.with_name("fold_all"))
    message = refused(capsys)
    assert "Dataset007_Discs" in message and "fold_all" in message


@pytest.mark.slow
def test_no_display_and_no_home_are_needed(compared):
    variables = {name: value for name, value in os.environ.items() if name not in ("HOME", "MPLCONFIGDIR")}
    command = [sys.executable, "-m", "nnunet_mamba_mis.cli", "benchmark", "report", "-d", "7", "-o", "report"]
    variables["MPLBACKEND"] = "nosuch"
    subprocess.run([*command, "--no-overlays"], cwd=compared.root, env=variables, check=True, timeout=120)
    assert (compared.root / "report" / "Dataset007_Discs_cost.png").is_file()

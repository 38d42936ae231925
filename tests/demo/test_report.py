"""The scores of the unseen images, and the report with its pictures."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from nnunet_mamba_mis.benchmark.evaluation.metrics import Counts
from nnunet_mamba_mis.demo.pictures import draw_overlays, draw_training_curve
from nnunet_mamba_mis.demo.report import FinishedStep, console_table, write_report
from nnunet_mamba_mis.demo.scoring import score_folders, summarize
from nnunet_mamba_mis.demo.steps import predict_step, train_step
from nnunet_mamba_mis.demo.workplace import Workplace
from nnunet_mamba_mis.nnunet.logs import read_epochs
from nnunet_mamba_mis.utils.errors import UserError
from support.images import save_image


def test_two_empty_masks_have_no_dice_and_are_counted_separately():
    scores = {"a": Counts(10, 0, 0, 5), "b": Counts(5, 5, 5, 0), "c": Counts(0, 0, 0, 15)}
    summary = summarize(scores)
    assert summary.dice_mean == pytest.approx(0.75) and summary.dice_sd == pytest.approx(0.3536, abs=1e-4)
    assert (summary.images, summary.both_empty) == (3, 1)
    table = console_table(scores, summary)
    assert "0.750 ± 0.354" in table and "(2 images)" in table


def test_a_long_table_shows_both_ends_in_at_most_100_columns():
    scores = {"x" * 70 + str(i): Counts(i, 100 - i, 100 - i, 0) for i in range(100)}
    lines = console_table(scores, summarize(scores)).splitlines()
    assert len(lines) < 30 and max(map(len, lines)) <= 100
    assert "76 more in report.md" in "\n".join(lines)


@pytest.fixture
def results(place) -> Workplace:
    """Three unseen images: one polyp found partly, one at the border found fully, and one without a polyp."""
    place.predictions.mkdir()
    truths, predictions = np.zeros((3, 20, 30), np.uint8), np.zeros((3, 20, 30), np.uint8)
    truths[0, 5:15, 5:15] = predictions[0, 5:15, 10:20] = 1
    truths[1, :8, :8] = predictions[1, :8, :8] = 1
    for name, truth, prediction in zip("abc", truths, predictions, strict=True):
        save_image(place.raw / "imagesTs" / f"{name}_0000.png", 30, 20)
        Image.fromarray(truth).save(place.raw / "labelsTs" / f"{name}.png")
        Image.fromarray(prediction).save(place.predictions / f"{name}.png")
    return place


def test_folders_are_scored_worst_first_and_images_without_polyp_last(results):
    scores = score_folders(results.raw / "labelsTs", results.predictions)
    assert list(scores) == ["a", "b", "c"]
    assert [(scores[name].dice, scores[name].iou) for name in "ab"] == [(0.5, 1 / 3), (1.0, 1.0)]
    assert scores["c"].both_empty


def test_a_missing_prediction_is_named(results):
    (results.predictions / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png is missing"):
        score_folders(results.raw / "labelsTs", results.predictions)


def test_a_prediction_of_another_shape_is_named(results):
    save_image(results.predictions / "b.png", 20, 30)
    with pytest.raises(UserError, match=r"b\.png"):
        score_folders(results.raw / "labelsTs", results.predictions)


def test_names_are_escaped_and_unreadable_images_are_named(results):
    odd = "a$x_{$[b]|`c`\x1b"
    labels, images = results.raw / "labelsTs", results.raw / "imagesTs"
    for folder, suffix in ((labels, ""), (images, "_0000"), (results.predictions, "")):
        (folder / f"a{suffix}.png").rename(folder / f"{odd}{suffix}.png")
    (images / "b_0000.png").write_bytes(b"no image")
    (images / "c_0000.png").unlink()
    scores = score_folders(labels, results.predictions)
    problems = draw_overlays(scores, images, labels, results.predictions, results.folder / "overlays.png")
    assert [problem.split()[1] for problem in problems] == ["b", "c"]
    write_report(results.folder / "report.md", "Of a|b.", "a <GPU>", [], [], scores, summarize(scores), problems)
    text = (results.folder / "report.md").read_text(encoding="utf-8")
    assert (
        "| a\\$x\\_{\\$[b]\\|\\`c\\`\\\\x1b | 0.500 | 0.333 |" in text and "Of a\\|b." in text and "a \\<GPU>" in text
    )
    # pictures that were not drawn are not shown
    assert "](overlays.png)" in text and "](training_curve.png)" not in text and text.count("- ⚠ ") == 2
    assert "\x1b" not in text + console_table(scores, summarize(scores))


def test_report_and_pictures_are_written(results, nnunet_output):
    labels = results.raw / "labelsTs"
    scores = score_folders(labels, results.predictions)
    out = results.folder
    draw_overlays(scores, results.raw / "imagesTs", labels, results.predictions, out / "overlays.png")
    draw_training_curve(list(read_epochs(nnunet_output.splitlines())), out / "training_curve.png")
    done = [FinishedStep(train_step(results, 8), 61.0), FinishedStep(predict_step(results), 2.0)]
    write_report(out / "report.md", "Data.", "a CPU", ["export a=b"], done, scores, summarize(scores))

    text = (out / "report.md").read_text(encoding="utf-8")
    assert "**0.750**" in text and "| a | 0.500 | 0.333 |" in text and "| c | no polyp | none found |" in text
    assert "| Train Mamba-MIS | 1 min 01 s |" in text and done[1].step.as_typed() in text and "export a=b" in text
    for name in re.findall(r"\]\((\S+\.png)\)", text):
        with Image.open(out / name) as picture:
            assert picture.width > 600 and len(picture.convert("RGB").getcolors(10**6)) > 20

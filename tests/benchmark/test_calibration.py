"""Calibration in the report, and reading the probabilities that it is computed from."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from nnunet_mamba_mis.benchmark.evaluation.calibration import BINS, Reliability
from nnunet_mamba_mis.benchmark.label_maps import Labels, read_probabilities
from nnunet_mamba_mis.nnunet.results import predicted_files
from support.benchmark_command import finish_training, make_job
from support.benchmark_results import CASES, OURS, STOCK, Place, report, rows_of_csv, section
from support.small_dataset import ELSEWHERE, NUMBER, OTHER


def save_probabilities(place: Place, trainer: str, inside: float, outside: float) -> None:
    """Save probabilities beside each validated case: `inside` where polyp was predicted, `outside` elsewhere."""
    for prediction in (place.results / place.name).glob(f"{trainer}__*/fold_*/validation/*.png"):
        polyp = np.where(imageio.imread(prediction), inside, outside).astype(np.float32)[None]
        np.savez_compressed(prediction.with_suffix(".npz"), probabilities=np.stack([1 - polyp, polyp]))


def test_error_and_bias_follow_their_definitions():
    probability = np.array([[0.05, 0.05, 0.95, 0.95], [0.5, 0.5, 1.0, 0.0]])
    truth = np.array([[True, False, True, False], [True, False, True, False]])
    reliability = Reliability.measure(probability, truth)
    # 0.95 and 1.0 are in the last bin, 0.0 and 0.05 in the first
    expected = (abs(0.10 - 1) + abs(2.9 - 2) + abs(1.0 - 1)) / 8
    assert reliability.error == pytest.approx(expected)
    assert reliability.bias == pytest.approx((4.0 - 4) / 8)
    mean, frequency = reliability.curve
    assert mean == pytest.approx([0.1 / 3, 0.5, 2.9 / 3]) and frequency == pytest.approx([1 / 3, 1 / 2, 2 / 3])


def test_ignored_pixels_are_in_no_bin():
    counted = np.array([[True, False]])
    reliability = Reliability.measure(np.array([[0.2, 0.9]]), np.array([[False, False]]), counted)
    assert reliability.pixels.sum() == 1 and reliability.error == pytest.approx(0.2)


def test_sum_of_reliabilities_is_the_reliability_of_all_pixels():
    random = np.random.default_rng(0)
    probability, truth = random.random((2, 6, 7)), random.random((2, 6, 7)) > 0.5
    parts = [Reliability.measure(*part) for part in zip(probability, truth, strict=True)]
    together = Reliability.measure(probability, truth)
    assert (parts[0] + parts[1]).error == pytest.approx(together.error)
    assert len(together.pixels) == BINS


def test_report_shows_the_calibration_of_models_with_saved_probabilities(compared):
    assert "Calibration" not in report(compared)
    save_probabilities(compared, STOCK, 0.9, 0.2)
    text = report(compared, pictures="drawn")
    assert f"{OURS}: not all probabilities were saved." in text
    legend = (compared.root / "report" / "Dataset007_Discs_calibration.svg").read_text()
    assert STOCK in legend and OURS not in legend
    save_probabilities(compared, OURS, 0.9, 0.01)
    text = report(compared, pictures="drawn")
    (stock, ours) = (
        line.split("|")[2:4]
        for line in section(text, compared.name).splitlines()
        if line.count("|") == 4 and "0." in line
    )
    assert float(stock[0]) > 0.15 > float(ours[0]) and float(stock[1]) > 0.1
    assert (compared.root / "report" / "Dataset007_Discs_calibration.png").read_bytes().startswith(b"\x89PNG")
    by_trainer = {
        name: [float(row["ece"]) for row in rows_of_csv(compared) if row["trainer"] == name] for name in (STOCK, OURS)
    }
    assert min(by_trainer[STOCK]) > max(by_trainer[OURS])


def test_cases_with_damaged_probabilities_are_left_out_and_named(compared):
    save_probabilities(compared, STOCK, 0.9, 0.1)
    (file,) = compared.results.glob(f"*/{STOCK}__*/fold_0/validation/case0.npz")
    file.write_bytes(file.read_bytes()[:90])
    assert f"{CASES[0]} is left out: {file} cannot be used" in report(compared).replace("\\", "")


@pytest.fixture
def labels(place: Place) -> Labels:
    return Labels.read(place.raw / "dataset.json")


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"softmax": np.zeros((2, 1, 3, 4), np.float32)}, "probabilities"),
        ({"probabilities": np.zeros((2, 1, 4, 3), np.float32)}, "shape"),
        ({"probabilities": np.zeros((3, 1, 3, 4), np.float32)}, "3 channels, expected 2"),
        ({"probabilities": np.full((2, 1, 3, 4), 7, np.float32)}, "not between 0 and 1"),
        ({"probabilities": np.full((2, 1, 3, 4), np.nan, np.float32)}, "not between 0 and 1"),
        ({"probabilities": np.full((2, 1, 3, 4), None)}, "allow_pickle"),
    ],
)
def test_unusable_probabilities_are_named(tmp_path, labels, arrays, problem):
    file = tmp_path / "case.npz"
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=problem) as error:
        read_probabilities(file, labels, (3, 4))
    assert str(file) in str(error.value)


def test_reading_probabilities_runs_no_code(tmp_path, labels):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "case.npz").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match=r"case\.npz"):
        read_probabilities(tmp_path / "case.npz", labels, (3, 4))
    assert not (tmp_path / "ran").exists()


def test_each_region_has_a_channel_and_classes_have_one_more(place):
    place.labels = {"background": 0, "whole": [1, 2], "core": 2}
    place.write_dataset({})
    description = (place.raw / "dataset.json").read_text()
    (place.raw / "dataset.json").write_text(description.replace("{", '{"regions_class_order": [1, 2], ', 1))
    regions = Labels.read(place.raw / "dataset.json").of_channels(np.array([0.1, 0.2]))
    assert regions == {"whole": 0.1, "core": 0.2}


# ------------------------------------------------------------------------------------------- run


def test_finished_job_without_probabilities_is_validated_again(place):
    job = make_job(place.results)
    finish_training(job)
    (job.candidate.folder / "dataset.json").write_text((place.raw / "dataset.json").read_text())
    job.summary.write_text('{"metric_per_case": [{"prediction_file": "a.b.png"}]}')
    with_probabilities = type(job)(job.candidate, job.fold, probabilities=True)
    assert with_probabilities == job and job.is_done() and not with_probabilities.is_done()
    assert with_probabilities.commands("cpu")[0][-2:] == ["--val", "--npz"]
    (job.summary.parent / "a.b.npz").touch()
    assert with_probabilities.is_done()


@pytest.mark.slow
def test_run_saves_probabilities_that_the_report_reads(benchmark, tmp_path):
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "--folds", 0, "-device", "cpu", "--test-on", ELSEWHERE]
    benchmark.start(*grid, "--save-probabilities").end()
    training = benchmark.job("Quick")
    test = training.candidate.folder / "test_folds_0" / OTHER / "imagesTr"
    for summary in (training.summary, test / "summary.json"):
        assert all((summary.parent / name).with_suffix(".npz").is_file() for name in predicted_files(summary))
    # a truncated archive, as from a killed process
    damaged = next(test.glob("*.npz"))
    os.truncate(damaged, damaged.stat().st_size // 2)
    (test / "summary.json").unlink()
    benchmark.start(*grid, "--save-probabilities").end()
    benchmark.run("report", "-d", NUMBER, "-o", tmp_path / "report", "--no-overlays")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("### Calibration") == 2 and " is left out" not in text

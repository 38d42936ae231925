"""The state of jobs, read from their folders: done, begun, progress, and remaining commands."""

from __future__ import annotations

import json
import os

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.running.jobs import Candidate, Prediction, Training, announce, find_jobs
from nnunet_mamba_mis.benchmark.running.processes import RunningJob, try_lock
from nnunet_mamba_mis.benchmark.running.progress import read_progress
from nnunet_mamba_mis.benchmark.test_sets import TestSet
from nnunet_mamba_mis.cli.benchmark.status import table
from support.benchmark_command import DATASET, finish_training, make_job
from support.benchmark_results import Place
from support.images import disc
from support.small_dataset import OTHER

CANDIDATE_SEEDS = [None, 3]


@pytest.mark.parametrize("name", ["T__P__2d", "nnUNetTrainerMambaMIS_cnn__nnUNetResEncUNetMPlans__3d_fullres"])
def test_a_models_text_is_its_folders_name(name):
    assert str(Model.parse(name)) == name


@pytest.mark.parametrize("name", ["T__P", "T__P__2d__x", "__P__2d", "T_P_2d"])
def test_other_folders_are_not_models(name):
    assert Model.parse(name) is None


@pytest.mark.parametrize("seed", CANDIDATE_SEEDS)
def test_announced_jobs_are_found_by_their_folders(tmp_path, seed):
    candidate = Candidate(tmp_path, DATASET, Model("T", "P"), seed)
    training, prediction = (
        Training(candidate, 2),
        Prediction(candidate, (0, 2), TestSet("Dataset002_B", "imagesTs_x_y")),
    )
    announce([prediction, training])
    (training.folder.with_name("fold_all")).mkdir()
    (training.folder.with_name("fold_all") / "benchmark.log").touch()
    assert find_jobs(tmp_path) == find_jobs(tmp_path, ["1"]) == find_jobs(tmp_path, [DATASET]) == [training, prediction]
    assert find_jobs(tmp_path, ["2"]) == []


def test_half_written_checkpoint_is_set_aside(tmp_path, monkeypatch):
    job = make_job(tmp_path)
    job.folder.mkdir(parents=True)
    torch.save({"weights": torch.zeros(100)}, job.folder / "checkpoint_best.pth")
    whole = (job.folder / "checkpoint_best.pth").read_bytes()
    (job.folder / "checkpoint_latest.pth").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(Training, "commands", lambda job, device: [["python", "-c", "pass"]])
    outcome = RunningJob(job, try_lock(job), "cpu", {}).wait()
    assert outcome.startswith("failed") and "validation/summary.json" in outcome
    assert {path.name for path in job.folder.glob("*.pth*")} == {"checkpoint_best.pth", "checkpoint_latest.pth.broken"}


def test_validation_older_than_the_training_does_not_count(tmp_path):
    job = make_job(tmp_path)
    finish_training(job)
    assert job.is_done()
    os.utime(job.summary, (0, 0))
    assert not job.is_done()
    assert job.commands("cpu")[0][-1] == "--val"


# ------------------------------------------------------------------------------------------- predictions


@pytest.fixture
def prediction(tmp_path, monkeypatch) -> Prediction:
    """A prediction of three cases by a trained fold."""
    Place(tmp_path, []).write_test_set(OTHER, "Tr", {case: disc(20, 30, 9) for case in ("a", "b", "c")})
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    job = Prediction(make_job(tmp_path).candidate, (0,), TestSet(OTHER, "imagesTr"))
    finish_training(job.needs[0])
    job.folder.mkdir(parents=True)
    description = {"labels": {"background": 0, "polyp": 1}, "file_ending": ".png", "channel_names": {"0": "R"}}
    (job.candidate.folder / "dataset.json").write_text(json.dumps(description))
    return job


def evaluate(job: Prediction, cases: str) -> None:
    listed = [{"prediction_file": str(job.folder / f"{case}.png")} for case in cases]
    job.summary.write_text(json.dumps({"metric_per_case": listed}))


def test_interrupted_prediction_keeps_intact_and_current_files(prediction):
    for case in ("a", "b", "c", "gone"):
        imageio.imwrite(prediction.folder / f"{case}.png", disc(20, 30, 9))
    whole = (prediction.folder / "b.png").read_bytes()
    (prediction.folder / "b.png").write_bytes(whole[: len(whole) // 2])
    os.utime(prediction.folder / "c.png", (1, 1))
    evaluate(prediction, "abc")
    prediction.prepare()
    assert [file.name for file in prediction.folder.glob("*.png")] == ["a.png"] and not prediction.summary.exists()
    assert "--continue_prediction" in prediction.commands("cpu")[0]


def test_prediction_is_done_only_with_all_images(prediction):
    evaluate(prediction, "abc")
    assert prediction.is_done()
    imageio.imwrite(prediction.test_set.labels / "d.png", disc(20, 30, 9))
    assert not prediction.is_done()


def test_prediction_with_an_earlier_training_is_not_done(prediction):
    evaluate(prediction, "abc")
    os.utime(prediction.needs[0].final_checkpoint, (2**32, 2**32))
    assert not prediction.is_done()


# ------------------------------------------------------------------------------------------- status

LOG = """
2026-01-01 10:00:00.000000: Epoch {epoch}
2026-01-01 10:00:09.000000: train_loss -0.5
2026-01-01 10:00:09.000000: val_loss -0.4
2026-01-01 10:00:09.000000: Pseudo dice [np.float32(0.5), np.float32({dice}), np.float32(nan)]
2026-01-01 10:00:10.000000: Epoch time: {seconds} s
"""


def test_job_that_has_not_begun_is_to_do_or_queued(tmp_path):
    job = make_job(tmp_path)
    assert read_progress(job, running=False, queued=True).state == "queued"
    assert read_progress(job, running=False, queued=False).state == "to do"


def test_progress_is_counted_from_where_training_resumed(tmp_path):
    job = make_job(tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / "debug.json").write_text('{"num_epochs": "10"}')
    logs = [job.folder / f"training_log_2026_1_1_{hour}_00_00.txt" for hour in (9, 10)]
    logs[0].write_text("".join(LOG.format(epoch=epoch, dice=0.9, seconds=2) for epoch in range(5)))
    logs[1].write_text(LOG.format(epoch=3, dice=0.7, seconds=4))
    os.utime(logs[0], (1, 1))
    progress = read_progress(job, running=True, queued=False)
    assert (progress.state, progress.epochs_done, progress.epochs) == ("running", 4, 10)
    assert progress.dice == pytest.approx(0.6)
    assert progress.seconds_left == 6 * np.median([2, 2, 2, 2, 2, 4])


def test_epoch_in_progress_is_not_counted(tmp_path):
    job = make_job(tmp_path)
    job.folder.mkdir(parents=True)
    log = LOG.format(epoch=0, dice=0.7, seconds=4) + "\n".join(
        LOG.format(epoch=1, dice=0.1, seconds=9).splitlines()[:-1]
    )
    (job.folder / "training_log_2026_1_1_9_00_00.txt").write_text(log)
    progress = read_progress(job, running=True, queued=False)
    assert (progress.epochs_done, progress.dice) == (1, pytest.approx(0.6))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_status_fits_the_terminal(tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    trainers = ["nnUNetTrainer", "nnUNetTrainerMambaMIS_mambaDiscretization", "nnUNetTrainerMambaMIS_attentionOnly"]
    jobs = [
        Training(Candidate(tmp_path, dataset, Model(trainer, "nnUNetResEncUNetMPlans"), 1), fold)
        for dataset in ("Dataset101_KvasirSEG", "Dataset102_CVC-ClinicDB") for trainer in trainers for fold in range(5)
    ]  # fmt: skip
    lines = table({job: read_progress(job, running=False, queued=False) for job in jobs})
    assert max(map(len, lines)) <= width
    assert lines[0] == "plans nnUNetResEncUNetMPlans  configuration 2d  seed 1"[: len(lines[0])]
    assert len(lines) == len(jobs) + 3
    assert lines[-1] == "30 jobs: 30 to do"

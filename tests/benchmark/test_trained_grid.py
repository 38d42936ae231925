"""A finished `mamba_mis benchmark run`: failures, test sets, seeds."""

from __future__ import annotations

import re

import pytest
import torch

from nnunet_mamba_mis.nnunet.results import predicted_files
from support.benchmark_command import Benchmark
from support.small_dataset import NUMBER, OTHER

pytestmark = pytest.mark.slow


def test_failed_job_does_not_stop_the_others(trained_grid):
    benchmark, output = trained_grid
    assert "6 jobs: 4 done, 1 failed, 1 not started" in output
    assert "ValueError: the images are upside down" in output
    assert all(benchmark.job("Quick", fold, seed=1).is_done() for fold in (0, 1))


def test_prediction_starts_only_if_its_folds_are_done(trained_grid):
    _, output = trained_grid
    assert re.search(rf"Failing nnUNetPlans 2d folds 0 1 seed 1 on {OTHER} imagesTr: .*fold 0\b", output)


def test_ensemble_of_the_folds_predicts_and_scores_a_test_set(trained_grid):
    benchmark, _ = trained_grid
    folder = benchmark.job("Quick", seed=1).candidate.folder / "test_folds_0_1" / OTHER / "imagesTr"
    assert len(list(folder.glob("*_case?.png"))) == len(predicted_files(folder / "summary.json")) == 2
    log = (folder / "benchmark.log").read_text()
    assert re.search(r"nnUNetv2_predict .* -f 0 1 .* && .*nnUNetv2_evaluate_folder ", log)


def test_status_shows_the_outcome_of_each_job(trained_grid):
    benchmark, _ = trained_grid
    table = benchmark.run("status", "-d", NUMBER)
    assert re.search(r"Quick +0 +- +done +1/1 +[01]\.\d{3} +0 s", table), table
    assert re.search(rf"Quick +0 1 +{OTHER} imagesTr +done +- +[01]\.\d{{3}}", table), table
    assert re.search(r"Failing +0 +- +failed", table), table


def test_seed_makes_cpu_training_reproducible(trained_grid, benchmark):
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "--folds", 0, "--jobs", 2, "-device", "cpu", "--seeds", 1, 2]
    benchmark.start(*grid).end()
    first = weights(trained_grid[0], seed=1)
    same, other = (weights(benchmark, seed) for seed in (1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def weights(benchmark: Benchmark, seed: int) -> dict:
    return torch.load(benchmark.job("Quick", seed=seed).final_checkpoint, weights_only=False)["network_weights"]

"""Datasets, results and commands shared by several modules."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.benchmark_command import Benchmark, finish_training
from support.benchmark_results import CASES, FAR, OURS, SHAPES, STOCK, Place, predicted, write_folds
from support.images import disc
from support.nnunet_workplace import Dataset, Workplace
from support.paths import PROGRAMS
from support.small_dataset import ELSEWHERE, NUMBER, OTHER, discs, write_elsewhere


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A dataset of eight cases, two of which are frames of one sequence, without results."""
    place = Place(tmp_path, [CASES[::2], CASES[1::2]])
    place.write_dataset({case: disc(*shape) for case, shape in SHAPES.items()}, groups=[["case0", "case2"]])
    for name, value in place.variables.items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture
def compared(place: Place) -> Place:
    """The dataset of `place`, with the results of two trainers on both folds."""
    write_folds(place, STOCK, 3)
    write_folds(place, OURS, 1, random=1)
    return place


@pytest.fixture
def tested(compared: Place) -> Place:
    """The results of `compared`, with both trainers' predictions of a test set and of another dataset."""
    truths = {case: disc(*shape) for case, shape in FAR.items()}
    compared.write_test_set(compared.name, "Ts_far", truths)
    compared.write_test_set(OTHER, "Tr", truths, splits={"groups": [["far0", "far1", "far2"]]})
    for trainer, error in ((STOCK, 4), (OURS, 1)):
        for name, part in ((compared.name, "Ts_far"), (OTHER, "Tr")):
            compared.write_test(trainer, name, part, predicted(FAR, list(FAR), error, 3))
    return compared


@pytest.fixture(scope="session")
def dataset(nnunet: Workplace) -> Dataset:
    """Write the small dataset, and another dataset of two of its images; install trainers; return the small dataset."""
    shutil.copy(PROGRAMS / "benchmark_trainers.py", nnunet.root / "trainers")
    small = discs(nnunet)
    write_elsewhere(nnunet)
    return small


@pytest.fixture
def benchmark(nnunet: Workplace, dataset: Dataset, tmp_path: Path) -> Benchmark:
    """The benchmark command, with an empty results folder."""
    return Benchmark(nnunet, tmp_path / "results")


# the shared grid: two folds, one seed, one trainer that works and one that fails
GRID = ["run", "-d", NUMBER, "--trainers", "Quick", "Failing", "--folds", 0, 1, "--seeds", 1, "--jobs", 2]
GRID += ["-device", "cpu", "--test-on", ELSEWHERE]


@pytest.fixture(scope="module")
def trained_grid(
    nnunet: Workplace, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Benchmark, str]:
    """A finished grid, for tests that only read it, and the output of its command."""
    benchmark = Benchmark(nnunet, tmp_path_factory.mktemp("grid"))
    finish_training(benchmark.job("Failing", 1, seed=1))
    return benchmark, benchmark.start(*GRID).end(status=1)

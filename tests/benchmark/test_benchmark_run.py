"""`mamba_mis benchmark run` and `status`: a grid of trainings, killed and started again."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_mamba_mis.benchmark.running.jobs import Training
from nnunet_mamba_mis.benchmark.running.processes import RunningJob, is_running, try_lock
from nnunet_mamba_mis.benchmark.running.progress import read_progress
from nnunet_mamba_mis.cli.benchmark import run as run_command
from nnunet_mamba_mis.cli.benchmark.status import _table
from support.small_dataset import NUMBER, discs

# Quick is nnU-Net's own; Long is one of ours, slow enough to be killed
TRAINERS = """
import time
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunet_mamba_mis import trainers  # its names must not hide the brief ones of the other file

class Quick(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1

class Failing(Quick):
    def train_step(self, batch):
        raise ValueError("the images are upside down")

class Long(trainers.nnUNetTrainerMambaMIS_S, nnUNetTrainerNoDA):
    epochs, iterations_per_epoch, validation_iterations_per_epoch = 8, 2, 1

    def train_step(self, batch):
        time.sleep(0.4)
        return super().train_step(batch)
"""


class Benchmark:
    """The command, with a results folder of its own."""

    def __init__(self, nnunet, results: Path):
        results.mkdir(exist_ok=True)
        self.results = results
        self.variables = nnunet.variables | {"nnUNet_results": str(results)}
        # nnU-Net's workers import torch, each for seconds
        self.variables |= {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}

    def start(self, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "nnunet_mamba_mis.cli", "benchmark", *map(str, arguments)]
        return subprocess.Popen(
            command, env=self.variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *arguments: object, status: int = 0) -> str:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=280)
        assert process.returncode == status, output
        return output

    def job(self, trainer: str, fold: int = 0, seed: int | None = None) -> Training:
        dataset = f"Dataset{NUMBER:03d}_Tiny"
        return Training(self.results, dataset, trainer, "nnUNetPlans", "2d", fold, seed)


@pytest.fixture(scope="module")
def dataset(nnunet):
    (nnunet.root / "trainers" / "benchmark_trainers.py").write_text(TRAINERS)
    return discs(nnunet)


@pytest.fixture
def benchmark(nnunet, dataset, tmp_path):
    return Benchmark(nnunet, tmp_path / "results")


def wait_until(condition, command: subprocess.Popen | None = None) -> None:
    """Wait for what comes while a command runs."""
    end = time.monotonic() + 280
    while not condition():
        assert time.monotonic() < end
        assert command is None or command.poll() is None, command.communicate()[0]
        time.sleep(0.1)


def starts(job: Training) -> list[str]:
    """The commands that were started for a job."""
    return re.findall(r"# mamba_mis benchmark: .*: (?:\S+=\S* )*(nnUNetv2_train .*)", job.log.read_text())


def epochs(job: Training) -> list[int]:
    return [int(epoch) for epoch in re.findall(r": Epoch (\d+)", job.log.read_text())]


@pytest.mark.slow
def test_killed_and_started_again_a_grid_loses_nothing_and_runs_no_job_twice(benchmark):
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "Failing", "Long", "--folds", 0, "--jobs", 2, "-device", "cpu"]
    quick, failing, long = map(benchmark.job, ("Quick", "Failing", "Long"))
    first = benchmark.start(*grid)
    wait_until(lambda: long.log.exists() and "Epoch 2" in long.log.read_text(), first)
    # while it runs
    table = benchmark.run("status", "-d", NUMBER)
    assert re.search(r"Long +running +[234]/8 +0\.\d{3} +\d+ s", table), table
    wait_until(quick.is_done, first)
    wait_until(lambda: "failed: exit status 1" in failing.log.read_text(), first)
    assert not long.is_done()
    first.kill()
    first.communicate()

    # what was running has noticed, and saves; the next command comes too early or not, and waits for it
    output = benchmark.run(*grid, status=1)
    assert "Quick nnUNetPlans 2d fold 0: done before" in output
    assert "Long nnUNetPlans 2d fold 0: continued" in output
    assert "Failing nnUNetPlans 2d fold 0: failed: exit status 1" in output
    assert "ValueError: the images are upside down" in output
    assert "3 jobs: 2 done, 1 failed" in output
    assert [command.endswith("--c") for command in starts(long)] == [False, True]
    # the epoch in progress was begun twice, and no other
    seen = epochs(long)
    assert sorted(set(seen)) == list(range(8)) and len(seen) <= 9 and seen == sorted(seen)
    assert len(starts(quick)) == 1
    table = benchmark.run("status")
    assert re.search(r"Quick +done +1/1 +[01]\.\d{3} +0 s", table), table
    assert re.search(r"Failing +failed", table)
    assert "3 jobs: " in table


@pytest.mark.slow
def test_two_commands_share_the_work_and_ctrl_c_saves_it(benchmark):
    grid = ["run", "-d", NUMBER, "--trainers", "Long", "--folds", 0, "-device", "cpu"]
    long = benchmark.job("Long")
    first = benchmark.start(*grid)
    wait_until(lambda: long.log.exists() and "Epoch 1" in long.log.read_text(), first)
    second = benchmark.start(*grid)
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert "stopped after" in output and "the same command goes on" in output
    wait_until(lambda: len(starts(long)) == 2, second)
    second.terminate()
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 128 + signal.SIGTERM, output
    assert "Long nnUNetPlans 2d fold 0: continued" in output
    assert (long.folder / "checkpoint_latest.pth").exists()
    assert not is_running(long.folder)
    assert read_progress(long, running=False, queued=False).state == "interrupted"


@pytest.mark.slow
def test_seed_makes_a_training_on_the_cpu_reproducible(benchmark, nnunet, tmp_path):
    again = Benchmark(nnunet, tmp_path / "again")
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "--folds", 0, "-device", "cpu", "--seeds"]
    other = again.start(*grid, 1)
    benchmark.run(*grid, 1, 2)
    assert other.wait(200) == 0
    one, two = (weights(benchmark.job("Quick", seed=seed)) for seed in (1, 2))
    same = weights(again.job("Quick", seed=1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], two[name]) for name in one)
    assert re.search(r"seed +state.*\n1 +done.*\n2 +done", benchmark.run("status"))


def weights(job: Training) -> dict:
    return torch.load(job.folder / "checkpoint_final.pth", weights_only=False)["network_weights"]


def test_dry_run_prints_each_command_that_is_left(benchmark):
    validated(benchmark.job("nnUNetTrainer", seed=7))
    trained = benchmark.job("nnUNetTrainer", fold=1, seed=7).folder
    trained.mkdir(parents=True)
    (trained / "checkpoint_final.pth").touch()
    output = benchmark.run(
        "run", "-d", NUMBER, "--trainers", "nnUNetTrainer", "Long", "--folds", 0, 1, "--seeds", 7, "--jobs", 2,
        "-device", "cpu", "--dry-run",
    )  # fmt: skip
    commands = output.splitlines()
    assert commands[-1] == "# 1 of 4 jobs are done; nothing was started"
    seeded = "python -m nnunet_mamba_mis.benchmark.running.seeded_train 7 Dataset041_Tiny 2d"
    assert [command.partition(" python ")[2] for command in commands[:-1]] == [
        f"{seeded} {job} -p nnUNetPlans -device cpu{end}".partition(" ")[2]
        for job, end in (("0 -tr Long", ""), ("1 -tr nnUNetTrainer", " --val"), ("1 -tr Long", ""))
    ]
    assert all(f"nnUNet_results={benchmark.results}/seed_7 " in command for command in commands[:-1])
    assert not benchmark.job("Long", seed=7).folder.exists()


def validated(job: Training) -> None:
    (job.folder / "validation").mkdir(parents=True)
    (job.folder / "checkpoint_final.pth").touch()
    (job.folder / "validation" / "summary.json").write_text('{"foreground_mean": {"Dice": 0.5}}')


def test_all_that_is_wrong_is_said_before_anything_starts(benchmark, nnunet):
    plans = nnunet.preprocessed / f"Dataset{NUMBER:03d}_Tiny" / "nnUNetPlans.json"
    copy, unprocessed = plans.with_name("CopiedPlans.json"), plans.with_name("OtherPlans.json")
    copy.write_text(plans.read_text())
    changed = json.loads(plans.read_text()) | {"plans_name": "OtherPlans"}
    changed["configurations"]["2d"]["data_identifier"] = "OtherPlans_2d"
    unprocessed.write_text(json.dumps(changed))
    try:
        output = benchmark.run(
            "run", "-d", NUMBER, 999, "nonsense", "--trainers", "nnUNetTrainer", "nnUNetTrainerMambaMIX",
            "--folds", 0, 9, "--plans", "nnUNetPlans", "NoPlans", "CopiedPlans", "OtherPlans", "-device", "cpu",
            status=1,
        )  # fmt: skip
    finally:
        copy.unlink(), unprocessed.unlink()
    assert output.count("mamba_mis: error") == 1 and "Traceback" not in output
    for reason in (
        "there is no trainer nnUNetTrainerMambaMIX",
        "999",
        "-d nonsense",
        "has no plans NoPlans",
        "has the plans_name nnUNetPlans",
        "is not preprocessed for OtherPlans 2d",
        "--folds 9: Dataset041_Tiny has folds 0 to 4",
    ):
        assert reason in output
    assert not list(benchmark.results.iterdir())


@pytest.mark.parametrize(
    "arguments, trainers, plans",
    [
        ("--trainers A B", ["A", "B"], ["nnUNetPlans"]),
        ("--trainers A --plans P Q", ["A"], ["P", "Q"]),
        ("--preset sizes", [f"nnUNetTrainerMambaMIS{size}" for size in ("_S", "", "_L")], ["nnUNetPlans"]),
        ("--preset sizes --plans P", [f"nnUNetTrainerMambaMIS{size}" for size in ("_S", "", "_L")], ["P"]),
    ],
)
def test_trainers_are_named_or_a_presets(arguments, trainers, plans):
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    compared = run_command._compared(parser.parse_args(["-d", "1", *arguments.split()]))
    assert tuple(map(list, compared)) == (trainers, plans)


def test_workers_of_a_killed_training_do_not_keep_the_job_from_going_on(tmp_path):
    """nnU-Net's own trainer leaves them when it is ended by force."""
    job = Training(tmp_path, "Dataset001_A", "T", "P", "2d", 0)
    code = f"""if True:
        import os, subprocess, sys
        from pathlib import Path
        from nnunet_mamba_mis.benchmark.running import processes
        from nnunet_mamba_mis.benchmark.running.jobs import Training
        job = Training(Path({str(tmp_path)!r}), "Dataset001_A", "T", "P", "2d", 0)
        lock = processes.try_lock(job)
        worker = "import time; time.sleep(600)"
        training = f"import os, time; os.fork() or time.sleep(600); time.sleep(600)"
        Training.commands = lambda job, device: [["python", "-c", training]]
        print(processes.RunningJob(job, lock, "cpu", {{}}).process.pid, flush=True)
        import time; time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    training = int(parent.stdout.readline())
    wait_until(lambda: len(group(training)) == 2)
    assert is_running(job.folder) and try_lock(job) is None
    parent.kill()
    parent.wait()
    # the training gets SIGTERM when its parent has gone; the worker does not
    wait_until(lambda: len(group(training)) == 1)
    assert is_running(job.folder)
    assert try_lock(job) is None
    wait_until(lambda: not is_running(job.folder))
    assert group(training) == []
    os.close(try_lock(job))


def group(leader: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_half_written_checkpoint_is_set_aside(tmp_path, monkeypatch):
    job = Training(tmp_path, "Dataset001_A", "T", "P", "2d", 0)
    job.folder.mkdir(parents=True)
    torch.save({"weights": torch.zeros(100)}, job.folder / "checkpoint_best.pth")
    whole = (job.folder / "checkpoint_best.pth").read_bytes()
    (job.folder / "checkpoint_latest.pth").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(Training, "commands", lambda job, device: [["python", "-c", "pass"]])
    running = RunningJob(job, try_lock(job), "cpu", {})
    running.wait()
    assert running.finish() == "failed: it ended without validation/summary.json"
    assert {path.name for path in job.folder.glob("*.pth*")} == {"checkpoint_best.pth", "checkpoint_latest.pth.broken"}


def test_validation_older_than_the_training_is_not_its_own(tmp_path):
    job = Training(tmp_path, "Dataset001_A", "T", "P", "2d", 0)
    validated(job)
    assert job.is_done()
    os.utime(job.folder / "validation" / "summary.json", (0, 0))
    assert not job.is_done()
    assert job.commands("cpu")[0][-1] == "--val"


LOG = """
2026-01-01 10:00:00.000000: Epoch {epoch}
2026-01-01 10:00:09.000000: train_loss -0.5
2026-01-01 10:00:09.000000: Pseudo dice [np.float32(0.5), np.float32({dice}), np.float32(nan)]
2026-01-01 10:00:10.000000: Epoch time: {seconds} s
"""


def test_progress_is_counted_from_where_training_went_on(tmp_path):
    job = Training(tmp_path, "Dataset001_A", "T", "P", "2d", 0)
    assert read_progress(job, running=False, queued=True).state == "queued"
    assert read_progress(job, running=False, queued=False).state == "to do"
    job.folder.mkdir(parents=True)
    (job.folder / "debug.json").write_text('{"num_epochs": "10"}')
    logs = [job.folder / f"training_log_2026_1_1_{hour}_00_00.txt" for hour in (9, 10)]
    logs[0].write_text("".join(LOG.format(epoch=epoch, dice=0.9, seconds=2) for epoch in range(5)))
    logs[1].write_text("".join(LOG.format(epoch=epoch, dice=0.7, seconds=4) for epoch in (3,)))
    os.utime(logs[0], (1, 1))
    progress = read_progress(job, running=True, queued=False)
    assert (progress.state, progress.epochs_done, progress.epochs) == ("running", 4, 10)
    assert progress.dice == pytest.approx(0.6)
    assert progress.seconds_left == 6 * np.median([2, 2, 2, 2, 2, 4])


@pytest.mark.parametrize("width", [60, 80, 200])
def test_status_fits_the_terminal(tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    trainers = ["nnUNetTrainer", "nnUNetTrainerMambaMIS_mambaDiscretization", "nnUNetTrainerMambaMIS_attentionOnly"]
    jobs = [
        Training(tmp_path, dataset, trainer, "nnUNetResEncUNetMPlans", "2d", fold, 1)
        for dataset in ("Dataset101_KvasirSEG", "Dataset102_CVC-ClinicDB") for trainer in trainers for fold in range(5)
    ]  # fmt: skip
    lines = _table({job: read_progress(job, running=False, queued=False) for job in jobs})
    assert max(map(len, lines)) <= width
    assert lines[0] == "plans nnUNetResEncUNetMPlans  configuration 2d  seed 1"[: len(lines[0])]
    assert len(lines) == len(jobs) + 3
    assert lines[-1] == "30 jobs: 30 to do"

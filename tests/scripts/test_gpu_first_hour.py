"""`scripts/gpu_first_hour.sh` and its helpers, tested without a GPU."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_S
from support import small_dataset
from support.paths import REPOSITORY
from support.trainer_in_process import make_trainer
from support.waiting import wait_until

SCRIPTS = REPOSITORY / "scripts"
HELPERS = SCRIPTS / "gpu_first_hour"
BARE = str(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"))  # has no packages


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_hour(out: Path, *arguments: object, status: int = 0, python: str = sys.executable) -> str:
    """Run the script on the CPU, assert its exit status, and return the summary."""
    done = subprocess.run(command(*arguments), env=os.environ | {"PYTHON": python}, capture_output=True, text=True)
    assert done.returncode == status, (done.stdout, done.stderr)
    return (out / "summary.txt").read_text()


def command(*arguments: object) -> list[str]:
    return [str(SCRIPTS / "gpu_first_hour.sh"), "--device", "cpu", *map(str, arguments)]


# replaces nnU-Net's command, which is too slow for a test that stops and resumes it
TRAINING = """
import signal, sys, time
from pathlib import Path

def run_training_entry():
    stopped = Path(__file__).with_name("stopped")
    if stopped.exists():
        return
    signal.signal(signal.SIGTERM, lambda *_: (stopped.touch(), sys.exit(143)))
    print("training", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """Return the output folder; write a dataset to copy, and a stand-in for training that ends at once when resumed."""
    package = tmp_path / "packages" / "nnunetv2" / "run"
    package.mkdir(parents=True)
    (package / "run_training.py").write_text(TRAINING)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    dataset = tmp_path / "brought" / "Dataset900_Some"
    dataset.mkdir(parents=True)
    (dataset / "dataset.json").touch()
    return tmp_path / "out"


def test_stopped_slice_is_resumed(out, tmp_path):
    log = out / "logs" / "train_nnUNetTrainer.log"
    arguments = command("--bring", tmp_path / "brought", out, "train")
    running = subprocess.Popen(arguments, env=os.environ | {"PYTHON": sys.executable}, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: log.exists() and "\ntraining" in log.read_text(), 30, "the training")
    finally:
        running.terminate()
    assert running.wait(30) == 1
    assert (out / "summary.txt").read_text().count("cut off") == 2
    assert (out / "preprocessed" / "Dataset900_Some" / "dataset.json").exists()
    summary = first_hour(out, out, "train")
    assert summary.count(" passed ") == 2 and "Everything passed" in summary


def test_failed_step_is_repeated_only_with_retry(out, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    log = out / "logs" / "train_nnUNetTrainer.log"
    first_hour(out, "--bring", tmp_path / "brought", out, "train", status=1, python=BARE)
    assert log.read_text().count("No module named 'nnunetv2'") == 1
    assert "failed (1)" in first_hour(out, out, "train", status=1, python=BARE)
    assert log.read_text().count("No module named 'nnunetv2'") == 1
    first_hour(out, "--retry", out, "train", status=1, python=BARE)
    assert log.read_text().count("No module named 'nnunetv2'") == 2


@pytest.mark.slow
def test_profile_of_a_training_step_is_written(nnunet, tmp_path, monkeypatch):
    nnunet.set_here(monkeypatch, nnUNet_results=str(tmp_path), nnUNet_n_proc_DA="0")
    trainer = make_trainer(nnUNetTrainerMambaMIS_S, nnunet.preprocessed / small_dataset.discs(nnunet).name)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    profile_step = load(HELPERS / "profile_step.py")
    profile_step.write(tmp_path / "profile", *profile_step.measure(trainer, steps=1))
    step = json.loads((tmp_path / "profile.json").read_text())
    assert step["batch"][:2] == [trainer.batch_size, 1] and 0 < step["step_seconds"] <= step["first_step_seconds"] * 10
    assert "convolution" in (tmp_path / "profile.txt").read_text()
    with gzip.open(tmp_path / "profile.trace.json.gz") as file:
        assert json.load(file)["traceEvents"]


def test_steps_that_do_not_start_in_time_are_cut_off(tmp_path):
    summary = first_hour(tmp_path, "--minutes", 0, tmp_path, "tests", "bench", status=1)
    rows = [line.split() for line in summary.splitlines() if "cut off" in line]
    assert {row[0] for row in rows} == {
        "tests_gpu",
        "tests_kernels",
        "bench_scan_gpu",
        "bench_network_gpu",
        "bench_memory",
    }
    assert (tmp_path / "results.tar.gz").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["--device", "tpu", "out"], ["--minutes", "soon", "out"], ["out", "everything"], ["--epochs"]]
)
def test_wrong_arguments_are_refused(arguments, tmp_path):
    done = subprocess.run([SCRIPTS / "gpu_first_hour.sh", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "--minutes" in done.stderr


def test_missing_dataset_is_a_failure(tmp_path):
    summary = first_hour(tmp_path, tmp_path, "train", status=1)
    assert "dataset" in summary and "failed" in summary


TESTS = """
import os, signal
import pytest

def test_good(): pass

@pytest.mark.skip
def test_left_out(): pass

def test_bad(): assert False

def test_breaks_cuda(): raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_behind_it(): pass

@pytest.mark.parametrize("name", ["one two"])
def test_crashes(name): os.kill(os.getpid(), signal.SIGKILL)

def test_last(): pass
"""


def test_tests_continue_after_a_crash_or_a_cuda_error(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    finished = tmp_path / "finished.tsv"
    command = [sys.executable, "-m", "pytest", "-p", "finished_tests", "-p", "no:cacheprovider", "--finished", finished]
    environment = os.environ | {"PYTHONPATH": str(HELPERS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def run() -> int:
        return subprocess.run([*command, tmp_path], env=environment, cwd=tmp_path, capture_output=True).returncode

    # the same test kills two runs and then counts as failed; the last run has nothing left to do
    assert [run() for _ in range(5)] == [75, -9, -9, 1, 1]
    rows = [line.split("\t") for line in finished.read_text().splitlines()]
    outcomes = {name.split("::")[1]: outcome for outcome, _, name in rows}
    assert outcomes == {
        "test_good": "passed",
        "test_left_out": "skipped",
        "test_bad": "failed",
        "test_breaks_cuda": "failed",
        "test_behind_it": "passed",
        "test_crashes[one two]": "failed",
        "test_last": "passed",
    }


@pytest.mark.parametrize(
    ("sizes", "limit", "parts"),
    [
        ([5, 5, 5], 10, [10, 5]),
        ([3, 9, 7, 1], 10, [10, 10]),
        ([25], 10, [10, 10, 5]),
        ([10, 10], 10, [10, 10]),
    ],
    ids=str,
)
def test_wheels_are_distributed_over_parts(sizes, limit, parts, tmp_path):
    wheels = [tmp_path / f"wheel{number}.whl" for number in range(len(sizes))]
    for path, size in zip(wheels, sizes, strict=True):
        path.write_bytes(os.urandom(size))
    distributed = load(SCRIPTS / "collect_wheels.py").split(wheels, limit)
    assert [sum(piece.size for piece in part) for part in distributed] == parts
    folder = tmp_path / "brought"
    folder.mkdir()
    for piece in (piece for part in distributed for piece in part):
        piece.write(folder)
    for path in wheels:
        pieces = sorted(folder.glob(f"{path.name}*"))
        assert b"".join(piece.read_bytes() for piece in pieces) == path.read_bytes()
        assert len(pieces) == 1 or path.stat().st_size > limit, "only a wheel larger than a part is cut"


@pytest.mark.parametrize("damage", ["no wheels", "missing part"])
def test_missing_wheels_are_reported_before_installation(damage, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    if damage == "missing part":
        (wheels / "wheels.sha256").write_text(f"{64 * '0'}  lost-1.0-py3-none-any.whl\n")
    command = ["bash", HELPERS / "install.sh", sys.executable, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "collect_wheels.py" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_resumed_benchmark_measures_only_missing_results(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "performance")
    measure = load(REPOSITORY / "performance" / "measure.py")
    monkeypatch.setattr(sys, "argv", ["benchmark", "--continue", "--tiny", "--results", str(tmp_path)])
    options = measure.gpu_options("")
    measured = []

    def work(name: str, value: dict | Exception) -> dict:
        measured.append(name)
        if isinstance(value, Exception):
            raise value
        return value

    first = measure.Journal("some", options)
    first.measure("good", lambda: work("good", {"seconds": 1.0}))
    first.measure("bad", lambda: work("bad", ValueError("wrong")))
    with pytest.raises(SystemExit):
        first.finish()
    second = measure.Journal("some", options)
    assert second.measure("good", lambda: work("good", {})) == {"seconds": 1.0}
    second.measure("bad", lambda: work("bad", {"seconds": 2.0}))
    second.finish()
    assert measured == ["good", "bad", "bad"]
    options.tiny = False
    assert measure.Journal("some", options).results == {}, "other sizes were measured"

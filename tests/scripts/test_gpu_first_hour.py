"""`scripts/gpu_first_hour.sh` and its helpers, without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support import small_dataset
from support.paths import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
HELPERS = SCRIPTS / "gpu_first_hour"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_hour(out: Path, *arguments: object, status: int = 0) -> str:
    """Run the script on the CPU, in this Python; returns the summary."""
    command = [SCRIPTS / "gpu_first_hour.sh", "--device", "cpu", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    logs = {path.name: path.read_text()[-2000:] for path in out.glob("logs/*")}
    assert done.returncode == status, (done.stdout, done.stderr, logs)
    return (out / "summary.txt").read_text() if out.exists() else done.stderr


@pytest.fixture
def brought(nnunet, tmp_path) -> Path:
    """A folder with a preprocessed dataset."""
    name = small_dataset.discs(nnunet).name
    shutil.copytree(nnunet.preprocessed / name, tmp_path / "brought" / name)
    return tmp_path / "brought"


@pytest.mark.slow
def test_slices_without_a_gpu(brought, tmp_path):
    out = tmp_path / "out"
    summary = first_hour(out, "--bring", brought, out, "install", "profile", "train")
    assert summary.count("passed") == 5 and summary.count("validation Dice") == 2, summary  # and "Everything passed"
    for trainer in ("nnUNetTrainer", "nnUNetTrainerMambaMIS"):
        step = json.loads((out / "profile" / f"{trainer}.json").read_text())
        assert step["step_seconds"] > 0 and step["batch"][1] == 1
        assert (out / "profile" / f"{trainer}.trace.json.gz").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*.json")}
    first_hour(out, out, "profile", "train")
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*.json")} == before, "what passed ran again"


def test_what_is_not_begun_in_time_is_cut_off(tmp_path):
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


def test_a_missing_dataset_is_a_failure(tmp_path):
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


def test_tests_continue_after_what_breaks_their_process(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    finished = tmp_path / "finished.tsv"
    command = [sys.executable, "-m", "pytest", "-p", "finished_tests", "-p", "no:cacheprovider", "--finished", finished]
    environment = os.environ | {"PYTHONPATH": str(HELPERS)}

    def run() -> int:
        return subprocess.run([*command, tmp_path], env=environment, cwd=tmp_path, capture_output=True).returncode

    # twice killed in the same test, which counts as failed then; the last run finds nothing to do
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
def test_wheels_are_dealt_to_parts(sizes, limit, parts, tmp_path):
    wheels = [tmp_path / f"wheel{number}.whl" for number in range(len(sizes))]
    for path, size in zip(wheels, sizes, strict=True):
        path.write_bytes(os.urandom(size))
    dealt = load(SCRIPTS / "collect_wheels.py").split(wheels, limit)
    assert [sum(piece.size for piece in part) for part in dealt] == parts
    folder = tmp_path / "brought"
    folder.mkdir()
    for piece in (piece for part in dealt for piece in part):
        piece.write(folder)
    for path in wheels:
        pieces = sorted(folder.glob(f"{path.name}*"))
        assert b"".join(piece.read_bytes() for piece in pieces) == path.read_bytes()
        assert len(pieces) == 1 or path.stat().st_size > limit, "only a wheel larger than a part is cut"


@pytest.mark.parametrize("damage", ["nothing there", "a part is missing"])
def test_wheels_that_lack_are_found_before_anything_is_made(damage, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    if damage == "a part is missing":
        (wheels / "wheels.sha256").write_text(f"{64 * '0'}  lost-1.0-py3-none-any.whl\n")
    command = ["bash", HELPERS / "install.sh", sys.executable, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "collect_wheels.py" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_benchmarks_continue_with_what_is_missing(tmp_path, monkeypatch):
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

"""The command line: options, output folders, interruption and imports."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from support.convert_trees import command, names
from support.waiting import wait_until

KVASIR_SEG = DATASETS["kvasir-seg"]


@pytest.mark.parametrize("columns", [80, 200])
def test_list_fits_the_terminal_and_is_complete(columns: int, monkeypatch: pytest.MonkeyPatch, run) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = run("--list")

    assert result.status == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= min(columns, 100)
    text = " ".join(result.stdout.split())
    for dataset in DATASETS.values():
        for fact in (f"{dataset.name}: {dataset.title}", dataset.layout, dataset.num_images, dataset.size):
            assert " ".join(fact.split()) in text
        assert f"licence {' '.join(dataset.licence.split())}" in text
        assert dataset.url in text


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import sys, nnunet_mamba_mis.cli.convert; print({'torch', 'numpy', 'SimpleITK', 'nnunetv2'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-d", "0"], "-d 0"),
        (["-d", "1000"], "-d 1000"),
        (["-d", "1", "--name", "../x"], "--name '../x'"),
        (["-d", "1", "-np", "0"], "-np 0"),
        (["-d", "1", "--resize", "7"], "--resize 7"),
        (["-d", "1", "--keep-aspect"], "--keep-aspect"),
        (["-d", "1", "--hold-out", "-1"], "--hold-out -1"),
        (["-d", "1", "--hold-out", "6"], "--hold-out 6"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value[-2:]),
)
def test_a_bad_argument_is_named(arguments: list[str], reason: str, kvasir: Path, raw: Path, error_of) -> None:
    assert reason in error_of("kvasir-seg", "-i", kvasir, *arguments)
    assert names(raw) == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"PK\3\4"), "is neither a folder nor a zip or tar archive, or it is truncated"),
        (lambda path: path.mkdir(), "found no folder images and no folder masks that contains images"),
    ],
    ids=["missing", "archive", "empty"],
)
def test_a_bad_source_is_named(
    make: Callable[[Path], object], reason: str, tmp_path: Path, raw: Path, error_of
) -> None:
    make(tmp_path / "kvasir-seg.zip")

    message = error_of("kvasir-seg", "-i", tmp_path / "kvasir-seg.zip", "-d", 1)

    assert str(tmp_path / "kvasir-seg.zip") in message
    assert reason in message
    assert names(raw) == []


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_id_in_use_is_refused_and_a_free_one_suggested(
    variable: str, kvasir: Path, tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, error_of
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / variable))
    for name in ("Dataset007_Other", "Dataset008_Another"):
        (tmp_path / variable / name).mkdir(parents=True)
    before = names(raw)

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 7)

    assert str(tmp_path / variable / "Dataset007_Other") in message
    assert "-d 9 is free" in message
    assert names(raw) == before


def test_nnunet_raw_must_be_set(kvasir: Path, monkeypatch: pytest.MonkeyPatch, error_of) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "export nnUNet_raw=/path" in error_of("kvasir-seg", "-i", kvasir, "-d", 1)


def test_missing_nnunet_raw_folder_is_created(kvasir: Path, raw: Path) -> None:
    raw.rmdir()
    assert convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder.is_dir()


def test_a_target_that_cannot_be_created_is_named(kvasir: Path, raw: Path, error_of) -> None:
    raw.rmdir()
    raw.write_text("a file")
    assert str(raw / "Dataset001_KvasirSEG") in error_of("kvasir-seg", "-i", kvasir, "-d", 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_write_leaves_nothing_behind(processes: int, kvasir: Path, raw: Path) -> None:
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    arguments = command("kvasir-seg", "-i", kvasir, "-d", 1, "-np", processes)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, preexec_fn=limit_file_size)

    assert (done.returncode, done.stdout) == (1, "")
    assert f"{raw / 'Dataset001_KvasirSEG'}: File too large" in done.stderr and "Traceback" not in done.stderr
    assert names(raw) == []


@pytest.mark.parametrize(
    ("processes", "sign"),
    [(1, ".converting_*/dataset/imagesTr/*"), (2, ".converting_*/dataset/imagesTr/*"), (2, ".converting_*")],
    ids=["one process", "two processes", "two processes, at the start"],
)
def test_ctrl_c_leaves_nothing_behind(processes: int, sign: str, pairs, raw: Path) -> None:
    arguments = command("kvasir-seg", "-i", pairs(30, 600), "-d", 1, "-np", processes)
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_until(lambda: process.poll() is not None or list(raw.glob(sign)), 30)
        time.sleep(0.05)
        # interrupt all its processes, as a terminal does
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    assert (stdout, stderr) == ("", "mamba_mis: interrupted\n")
    assert names(raw) == []


def test_a_closed_output_pipe_is_not_an_error():
    command = f"{Path(sys.executable).with_name('mamba_mis')} convert --list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 141) and not done.stderr

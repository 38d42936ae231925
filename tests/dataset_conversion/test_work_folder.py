"""Datasets appear atomically, and none is ever lost."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_mamba_mis.dataset_conversion import DATASETS, work_folder
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.dataset_conversion.options import Options
from support.convert_trees import command, contents, names, only, photograph, read, report, rgb, write, write_kvasir
from support.images import centred_disc
from support.waiting import runs, wait_until

KVASIR_SEG = DATASETS["kvasir-seg"]
TARGET = "Dataset001_KvasirSEG"

pytestmark = pytest.mark.usefixtures("preprocessed")


def time_conversion(arguments: list[str], raw: Path) -> tuple[float, float]:
    """Run a conversion; return the seconds until its work folder exists, and until its end."""
    start = time.monotonic()
    process = subprocess.Popen(arguments)
    wait_until(lambda: any(raw.glob(".converting_*")), 60)
    begun = time.monotonic() - start
    assert process.wait(60) == 0
    return begun, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwritten"])
def test_killing_at_any_moment_breaks_nothing(overwrite: bool, tmp_path: Path, raw: Path, pairs) -> None:
    source = pairs(24, 300)
    arguments = command("kvasir-seg", "-i", source, "-d", 1, "-np", 2, *(["--overwrite"] if overwrite else []))
    if overwrite:
        convert_dataset(KVASIR_SEG, [write_kvasir(tmp_path / "old", 5)], 1, processes=1)
    old = contents(raw / TARGET)
    begun, ended = time_conversion(command("kvasir-seg", "-i", source, "-d", 2, "--name", "KvasirSEG", "-np", 2), raw)
    new = contents(raw / "Dataset002_KvasirSEG")
    moments = random.Random(0)
    # kill at moments from shortly before the first write (until then, only imports run) until after the end
    first, last, count = 0.9 * begun, 1.1 * ended, 5 if overwrite else 8
    for index in range(count):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(first + (index + moments.random()) / count * (last - first))
        process.kill()
        process.wait()
        files = contents(raw / TARGET)
        assert files in ({}, old, new), sorted(files)
        if overwrite and not files:
            # killed between two renames: the next run restores the dataset
            assert contents(raw / f".replaced_{TARGET}") in (old, new)
        if files == new and not overwrite:
            shutil.rmtree(raw / TARGET)
            shutil.rmtree(tmp_path / "nnUNet_preprocessed" / TARGET)

    result = subprocess.run(arguments, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert contents(raw / TARGET) == new
    assert names(raw) == [TARGET, "Dataset002_KvasirSEG"], "the killed runs leave nothing behind"
    splits = tmp_path / "nnUNet_preprocessed" / TARGET / "splits_final.json"
    assert splits.read_bytes() == new["splits_final.json"]


@pytest.mark.slow
def test_workers_exit_when_their_parent_is_killed(raw: Path, pairs) -> None:
    process = subprocess.Popen(
        command("kvasir-seg", "-i", pairs(30, 600), "-d", 1, "-np", 2), stderr=subprocess.DEVNULL
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("no list of child processes on this system")
    # two workers and the resource tracker
    wait_until(lambda: process.poll() is not None or len(children.read_text().split()) >= 3, 30)
    workers = [int(pid) for pid in children.read_text().split()]
    assert len(workers) >= 3
    time.sleep(0.3)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(runs, workers)), 10, "the workers' end")


def test_a_dataset_moved_aside_by_a_killed_run_is_restored(kvasir: Path, tmp_path: Path, raw: Path) -> None:
    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder
    before = contents(folder)
    folder.rename(raw / f".replaced_{TARGET}")
    shutil.rmtree(tmp_path / "nnUNet_preprocessed" / TARGET)

    convert_dataset(KVASIR_SEG, [kvasir], 2, processes=1)

    assert names(raw) == [TARGET, "Dataset002_KvasirSEG"]
    assert contents(folder) == before


def test_the_work_folder_of_a_running_conversion_is_kept(kvasir: Path, tmp_path: Path, raw: Path) -> None:
    code = (
        "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); "
        "print(flush=True); time.sleep(60)"
    )
    for name in (".converting_Dataset009_Other_0a", ".converting_Dataset009_Other_0b"):
        (raw / name / "dataset").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", code, raw / name], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1)
        process.kill()

    assert names(raw) == [".converting_Dataset009_Other_0b", TARGET]


def test_an_existing_dataset_is_kept_without_overwrite(kvasir: Path, raw: Path, error_of) -> None:
    before = contents(convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder)

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1)

    for text in (str(raw / TARGET), "-d 2", "--overwrite"):
        assert text in message
    assert contents(raw / TARGET) == before


def test_overwrite_replaces_the_dataset_and_its_splits(kvasir: Path, tmp_path: Path, raw: Path, run) -> None:
    convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1)
    other = write_kvasir(tmp_path / "other", 8)

    result = run("kvasir-seg", "-i", other, "-d", 1, "--overwrite", "-np", 1)

    assert result.status == 0, result.stderr
    assert names(raw) == [TARGET]
    assert len(names(raw / TARGET / "imagesTr")) == 8
    splits = json.loads((tmp_path / "nnUNet_preprocessed" / TARGET / "splits_final.json").read_text())
    assert sum(len(split["val"]) for split in splits) == 8


def test_a_failed_overwrite_keeps_the_old_dataset(kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
    before = contents(convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder)
    only(kvasir, "images/cju1.jpg").write_bytes(b"")

    error_of("kvasir-seg", "-i", kvasir, "-d", 1, "--overwrite")

    assert contents(raw / TARGET) == before and names(raw) == [TARGET]


def test_overwrite_keeps_a_dataset_of_another_name(kvasir: Path, raw: Path, error_of) -> None:
    (raw / "Dataset001_Precious").mkdir()

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1, "--overwrite")

    assert "Dataset001_Precious" in message
    assert names(raw) == ["Dataset001_Precious"]


def test_edited_splits_are_kept(kvasir: Path, tmp_path: Path, raw: Path, run) -> None:
    convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1)
    splits = tmp_path / "nnUNet_preprocessed" / TARGET / "splits_final.json"
    splits.write_text("[]")

    result = run("kvasir-seg", "-i", kvasir, "-d", 1, "--overwrite", "-np", 1)

    assert result.status == 0, result.stderr
    assert splits.read_text() == "[]"
    assert str(splits) in result.stdout


def test_a_dry_run_writes_nothing_and_prints_the_plan(kvasir: Path, raw: Path, run) -> None:
    result = run("kvasir-seg", "-i", kvasir, "-d", 1, "--dry-run", "-np", 1)

    assert result.status == 0, result.stderr
    assert f"{raw / TARGET} would contain: 6 in imagesTr" in result.stdout
    assert "5 folds" in result.stdout and "nnUNetv2_train" not in result.stdout
    assert names(raw) == []


def spoil(kvasir: Path) -> None:
    """Spoil cases 1 to 7 of a source, each with a different kind of problem, and add a foreign file."""
    images, masks = only(kvasir, "images"), only(kvasir, "masks")
    (masks / "cju1.jpg").unlink()
    write(masks / "cju2.jpg", rgb(centred_disc((9, 9))))
    (images / "cju3.jpg").write_bytes(b"")
    write(masks / "cju4.jpg", rgb(photograph(read(masks / "cju4.jpg").shape[:2], 1)[..., 0]))
    write(masks / "cju5.jpg", rgb(centred_disc(read(masks / "cju5.jpg").shape[:2], 0)))
    shutil.copy(images / "cju6.jpg", masks / "cju6.jpg")
    write(images / "cju7.png", read(images / "cju7.jpg"))
    (images / "notes.docx").write_bytes(b"PK")


def test_all_problems_are_listed_together_with_counts(tmp_path: Path, raw: Path, error_of) -> None:
    kvasir = write_kvasir(tmp_path / "source", 10)
    spoil(kvasir)

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1, "-np", 2)

    assert (
        "(missing: 1, size mismatch: 1, unreadable: 1, not clearly binary: 1, empty mask: 1, "
        "duplicate content: 1, same case identifier: 1, foreign file: 1)"
    ) in message
    assert "--skip-bad" in message
    assert names(raw) == []


def test_skip_bad_leaves_out_and_reports_problems(tmp_path: Path, raw: Path, run) -> None:
    kvasir = write_kvasir(tmp_path / "source", 10)
    spoil(kvasir)

    result = run("kvasir-seg", "-i", kvasir, "-d", 1, "--skip-bad", "-np", 2)

    assert result.status == 0, result.stderr
    assert names(raw / TARGET / "labelsTr") == ["cju0.png", "cju8.png", "cju9.png"]
    left_out = report(raw / TARGET)["left_out"]
    assert sorted(str(left["identifier"]) for left in left_out) == ["None", *(f"cju{i}" for i in range(1, 8))]
    assert any("source/Kvasir-SEG/Kvasir-SEG/images/cju3.jpg " in left["why"] for left in left_out)
    assert "cju3.jpg" in result.stdout


def test_duplicates_warn_in_public_datasets_and_are_refused_in_folders(
    tmp_path: Path, raw: Path, run, error_of
) -> None:
    kvasir = write_kvasir(tmp_path / "source", 6)
    images, masks = only(kvasir, "images"), only(kvasir, "masks")
    for folder in (images, masks):
        shutil.copy(folder / "cju1.jpg", folder / "copy.jpg")

    result = run("kvasir-seg", "-i", kvasir, "-d", 1, "-np", 1)
    assert result.status == 0
    assert "cju1 = copy" in result.stderr or "copy = cju1" in result.stderr
    message = error_of("folder", "-i", images, masks, "-d", 2)
    assert "copy.jpg" in message and "duplicate content" in message


def test_a_link_out_of_the_source_is_not_followed(kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
    images = only(kvasir, "images")
    secret = tmp_path / "elsewhere.jpg"
    (images / "cju1.jpg").rename(secret)
    (images / "cju1.jpg").symlink_to(secret)

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1)

    assert str(images / "cju1.jpg") in message and str(secret) in message


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_a_clear_error(processes: int, small_disk: Path, pairs, monkeypatch, error_of) -> None:
    monkeypatch.setenv("nnUNet_raw", str(small_disk))

    message = error_of("kvasir-seg", "-i", pairs(24, 300), "-d", 1, "-np", processes)

    assert f"{small_disk / TARGET}: No space left on device" in message
    assert names(small_disk) == []


def test_a_read_only_target_is_a_clear_error(
    small_disk: Path, kvasir: Path, raw: Path, monkeypatch, run, error_of
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    monkeypatch.setenv("nnUNet_raw", str(small_disk))

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1)

    assert f"{small_disk / TARGET}: Read-only file system" in message
    # a dry run works
    assert run("kvasir-seg", "-i", kvasir, "-d", 1, "--dry-run").status == 0


def test_system_without_fcntl_converts_and_overwrites_too(kvasir: Path, raw: Path, monkeypatch) -> None:
    """Without fcntl, as on Windows, folders cannot be locked, so a run keeps even the work folders of killed runs."""
    monkeypatch.setattr(work_folder, "fcntl", None)
    left = raw / f".converting_{TARGET}_0a"
    (left / "dataset").mkdir(parents=True)

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder
    before = contents(folder)
    convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1, options=Options(overwrite=True))

    assert contents(folder) == before
    assert names(raw) == [left.name, TARGET]

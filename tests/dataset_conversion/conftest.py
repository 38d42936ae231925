"""Fixtures for the tests of `mamba_mis convert`."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from nnunet_mamba_mis.cli.main import main
from support.convert_trees import photograph, write, write_kvasir, write_pair
from support.images import centred_disc


class Finished(NamedTuple):
    """Exit status of a command, and everything that it and its libraries printed."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def kvasir(tmp_path: Path) -> Path:
    """A small Kvasir-SEG: six pairs of RGB JPEGs of different sizes, in nested folders."""
    return write_kvasir(tmp_path / "source", 6)


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """A small ISIC 2017: all three parts, with the other files that its downloads contain."""
    source = tmp_path / "ISIC"
    for part, identifiers in {
        # sorted by file name, ISIC_1 comes before ISIC_10 among the images, but after it among the masks
        "Training": ("ISIC_1", "ISIC_10", "ISIC_2"),
        "Validation": ("ISIC_3", "ISIC_4"),
        "Test_v2": ("ISIC_5",),
    }.items():
        data, truth = source / f"ISIC-2017_{part}_Data", source / f"ISIC-2017_{part}_Part1_GroundTruth"
        for name in identifiers:
            size = (20 + int(name[5:]), 30)
            write(data / f"{name}.jpg", photograph(size, seed=int(name[5:])))
            write(data / f"{name}_superpixels.png", photograph(size))
            write(truth / f"{name}_segmentation.png", centred_disc(size))
        (data / f"ISIC-2017_{part}_Data_metadata.csv").write_text("image_id,age_approximate,sex\n")
        (data / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (data / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (data / f"._{identifiers[0]}.jpg").write_bytes(b"\0\5\x16\7")
    write(source / "__MACOSX" / "ISIC-2017_Training_Data" / "ISIC_9.jpg", photograph((8, 8)))
    return source


@pytest.fixture
def preprocessed(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty nnUNet_preprocessed."""
    folder = tmp_path / "nnUNet_preprocessed"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    return folder


@pytest.fixture
def run(capfd) -> Callable[..., Finished]:
    """Return a function that runs `mamba_mis convert` in this process, by default without worker processes."""

    def call(*arguments: object) -> Finished:
        capfd.readouterr()
        processes = () if "-np" in arguments else ("-np", "1")
        try:
            status = main(["convert", *map(str, arguments), *processes])
        except SystemExit as leave:
            status = leave.code
        return Finished(status, *capfd.readouterr())

    return call


@pytest.fixture
def error_of(run) -> Callable[..., str]:
    """Return a function that runs a command, asserts that it fails cleanly, and returns its error message."""

    def call(*arguments: object) -> str:
        status, stdout, stderr = run(*arguments)
        assert (status, stdout) == (1, ""), stderr
        assert stderr.startswith("mamba_mis: error: ") and "Traceback" not in stderr
        # messages of ITK and its libraries
        for noise in ("WARNING", "ITK", "itk", "HDF5", "Exception"):
            assert noise not in stderr
        return stderr

    return call


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Callable[[int, int], Path]:
    """Return a function that makes a folder of square images and masks in Kvasir-SEG's layout; tests only read it."""

    @cache
    def make(number: int, side: int) -> Path:
        source = tmp_path_factory.mktemp("pairs")
        for i in range(number):
            write_pair(source / "images" / f"c{i}.png", source / "masks" / f"c{i}.png", i, (side, side))
        return source

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture
def verify_with_nnunet(monkeypatch: pytest.MonkeyPatch, listed_in_one_process: None) -> Callable[[Path], None]:
    """nnU-Net's check of a dataset, with forked workers: spawned ones would import nnU-Net for every dataset."""
    from nnunetv2.experiment_planning import verify_dataset_integrity as module

    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda _method: fork)
    return lambda folder: module.verify_dataset_integrity(str(folder), num_processes=1)

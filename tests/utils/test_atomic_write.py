"""A file is written completely, or the previous one stays."""

from __future__ import annotations

import errno
import importlib
import io
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from nnunet_mamba_mis.utils.atomic_write import atomic_files, atomic_write, remove_leftover_folders

fcntl = pytest.importorskip("fcntl")
atomic_write_module = importlib.import_module("nnunet_mamba_mis.utils.atomic_write")


@pytest.mark.feature("Resuming", "Ctrl-C once, twice, or while a checkpoint is written; nohup")
def test_interrupt_is_not_reported_as_a_full_disk(tmp_path):
    class Interrupted(io.BytesIO):
        def write(self, content):
            if self.tell() > 1000:
                signal.raise_signal(signal.SIGINT)
            return super().write(content)

    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file.pth"):
        torch.save([torch.zeros(1000) for _ in range(9)], Interrupted())
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_previous_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="broken"), atomic_write(path) as file:
        file.write(b"after")
        raise ValueError("broken")
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_success_replaces_the_previous_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with atomic_write(str(path)) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after" and [p.name for p in tmp_path.iterdir()] == ["file"]


def write_often(path: Path, content: bytes) -> None:
    for _ in range(40):
        with atomic_write(path) as file:
            for _ in range(8):
                file.write(content)
                file.flush()


def test_two_processes_that_write_one_path_never_mix(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([letter]) * 1000 for letter in b"ab"]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(path, content)) for content in contents]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {content * 8 for content in contents}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_leftovers_of_killed_writers_do_not_pile_up(tmp_path):
    path = tmp_path / "a[1].json"
    old, new, another = (tmp_path / f"{name}.partial" for name in (f"{path.name}.{'0' * 16}", path.name, "other.json"))
    alive = tmp_path / f"{path.name}.{'1' * 16}.partial"
    for leftover in (old, new, another, alive):
        leftover.write_bytes(b"killed")
    for leftover in (old, new, another):
        os.utime(leftover, (0, 0))
    with atomic_write(path) as file:
        file.write(b"content")
    assert set(tmp_path.iterdir()) == {path, another, alive}


def test_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_that_belong_together_appear_together(tmp_path):
    (tmp_path / "labels").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_files(tmp_path) as files:
        (files / "labels").write_text("half")
        raise OSError("full")
    assert (tmp_path / "labels").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with atomic_files(tmp_path) as files:
        (files / "more").mkdir()
        (files / "more" / "overlay").write_text("new")
        (files / "labels").write_text("new")
        assert (tmp_path / "labels").read_text() == "old"
    assert (tmp_path / "labels").read_text() == (tmp_path / "more" / "overlay").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_of_killed_writers_do_not_pile_up(tmp_path):
    old, new = (tmp_path / f".{digit * 16}.partial" for digit in "01")
    for folder in (old, new):
        folder.mkdir()
        (folder / "file").touch()
    for path in (old / "file", old):
        os.utime(path, (0, 0))
    remove_leftover_folders(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_files_are_written_out_through_descriptors_that_may_write(tmp_path, monkeypatch):
    """Windows refuses to flush a file through a read-only descriptor."""
    fsync = os.fsync

    def as_on_windows(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", as_on_windows)
    with atomic_files(tmp_path) as folder:
        (folder / "a").write_text("text")
    with atomic_write(tmp_path / "b") as file:
        file.write(b"text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("refusals", [2, 9])
def test_file_that_is_open_is_replaced_once_it_is_closed(refusals, tmp_path, monkeypatch):
    """Windows refuses to replace an open file; the writer tries again a few times, then gives up."""
    left = [PermissionError(13, "open elsewhere")] * refusals
    replace = Path.replace

    def as_on_windows(self, target):
        if left:
            raise left.pop()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", as_on_windows)
    monkeypatch.setattr(atomic_write_module, "_WAITS_IF_OPEN", (0.001,) * 4)
    path = tmp_path / "file"
    path.write_bytes(b"before")
    if refusals > 4:
        with pytest.raises(PermissionError), atomic_write(path) as file:
            file.write(b"after")
    else:
        with atomic_write(path) as file:
            file.write(b"after")
    assert path.read_bytes() == (b"before" if refusals > 4 else b"after")
    assert list(tmp_path.iterdir()) == [path]

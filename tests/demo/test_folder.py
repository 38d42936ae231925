"""The demo only uses an output folder of its own."""

from __future__ import annotations

import multiprocessing
import signal

import pytest

from nnunet_mamba_mis.cli import main as cli
from nnunet_mamba_mis.demo.folder import MARKER, check_folder, start_afresh
from nnunet_mamba_mis.demo.synthetic_polyps import write_synthetic_set
from nnunet_mamba_mis.utils.errors import UserError


def test_a_foreign_folder_is_refused_and_stays_unchanged(tmp_path, capsys):
    (tmp_path / "nnUNet_raw").mkdir()
    (tmp_path / "nnUNet_raw" / "precious.txt").write_text("mine")
    assert cli.main(["demo", "-o", str(tmp_path), "-device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "-o" in error
    assert [path.name for path in tmp_path.iterdir()] == ["nnUNet_raw"]
    assert (tmp_path / "nnUNet_raw" / "precious.txt").read_text() == "mine"


def test_a_file_as_output_folder_is_refused(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert cli.main(["demo", "-o", str(file)]) == 1
    assert str(file) in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_an_earlier_demo_is_replaced_but_other_files_in_its_folder_stay(tmp_path):
    folder = tmp_path / "new" / "demo"
    check_folder(folder, None)
    start_afresh(folder)
    (folder / "nnUNet_results" / "old").mkdir()
    (folder / "report.md").write_text("old")
    (folder / "notes.txt").write_text("mine")
    check_folder(folder, None)
    start_afresh(folder)
    assert not (folder / "nnUNet_results" / "old").exists() and not (folder / "report.md").exists()
    assert (folder / "notes.txt").read_text() == "mine" and (folder / MARKER).is_file()


def test_a_link_in_an_earlier_demo_is_removed_but_not_its_target(tmp_path):
    start_afresh(tmp_path / "demo")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious.txt").write_text("mine")
    (tmp_path / "demo" / "predictions").symlink_to(tmp_path / "elsewhere")
    start_afresh(tmp_path / "demo")
    assert (tmp_path / "elsewhere" / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "demo" / "predictions").is_symlink()


@pytest.mark.parametrize(
    ("source", "folder"), [("a", "a"), ("a", "a/b"), ("a/b", "a")], ids=["same", "out in", "in out"]
)
def test_source_and_output_folder_must_not_overlap(tmp_path, source, folder):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / MARKER).touch()
    with pytest.raises(UserError, match="-o"):
        check_folder(tmp_path / folder, tmp_path / source)


@pytest.mark.parametrize(
    ("number", "named"), [(None, "source"), (0, "source"), (4, "4 images")], ids=["absent", "empty", "too few"]
)
def test_an_unusable_source_is_refused_before_anything_is_written(tmp_path, capsys, number, named):
    if number is not None:
        write_synthetic_set(tmp_path / "source", number)
    out = tmp_path / "out"
    assert cli.main(["demo", "-i", str(tmp_path / "source"), "-o", str(out), "-device", "cpu"]) == 1
    assert named in capsys.readouterr().err
    assert not out.exists()


def hold(folder, ready):
    lock = start_afresh(folder)
    ready.send(lock.is_locked)
    signal.pause()


def test_second_demo_in_a_folder_changes_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    first = context.Process(target=hold, args=(tmp_path / "demo", there))
    first.start()
    try:
        assert here.recv()
        (tmp_path / "demo" / "report.md").write_text("first")
        with pytest.raises(UserError, match="another demo"):
            start_afresh(tmp_path / "demo")
        assert (tmp_path / "demo" / "report.md").read_text() == "first"
    finally:
        first.kill()
        first.join()
    assert start_afresh(tmp_path / "demo").is_locked

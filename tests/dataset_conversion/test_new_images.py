"""`mamba_mis convert images` converts any folder of images for nnU-Net's prediction."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from support.convert_trees import contents, names, photograph, read, rgb, write

RGB = photograph((20, 24))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Images of all common kinds."""
    folder = tmp_path / "new"
    exif = Image.Exif()
    exif[0x0112] = 6
    write(folder / "turned.JPG", RGB, exif=exif)
    write(folder / "grey.png", RGB[..., 0])
    write(folder / "alpha.png", np.dstack([RGB, np.full_like(RGB[..., :1], 255)]))
    Image.fromarray(RGB).quantize(16).save(folder / "palette.png")
    write(folder / "deep.png", RGB[..., 0].astype(np.uint16) * 16)
    write(folder / "bitmap.bmp", RGB)
    write(folder / "lossless.tif", RGB, compression="tiff_lzw")
    write(folder / "grey.1.gif", RGB[..., 0])
    write(folder / "with space.png", RGB)
    (folder / "notes.txt").write_text("mine")
    return folder


def test_every_kind_of_image_becomes_an_rgb_png(source: Path, tmp_path: Path, run) -> None:
    result = run("images", "-i", source, "-o", tmp_path / "out")

    assert (result.status, result.stderr) == (0, "")
    with Image.open(source / "turned.JPG") as turned, Image.open(source / "palette.png") as palette:
        upright, colours = np.asarray(ImageOps.exif_transpose(turned)), np.asarray(palette.convert("RGB"))
    grey = rgb(RGB[..., 0])
    expected = {
        "turned": upright,
        "grey": grey,
        "alpha": RGB,
        "palette": colours,
        "bitmap": RGB,
        "lossless": RGB,
        "grey.1": grey,
        "with_space": RGB,
        "deep": np.floor(grey.astype(float) * 16 * 255 / 4095 + 0.5),
    }
    assert names(tmp_path / "out") == sorted([*(f"{name}_0000.png" for name in expected), "conversion_report.json"])
    for name, pixels in expected.items():
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{name}_0000.png"), pixels)
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["images"]["bits"] == 12 and "12 bits" in result.stdout
    files = {case["identifier"]: case["image"]["file"] for case in report["cases"]}
    assert files["with_space"] == "new/with space.png" and files["turned"] == "new/turned.JPG"
    assert f"nnUNetv2_predict -i {tmp_path / 'out'} " in result.stdout


def test_nnunet_reads_converted_images_as_cases_of_three_channels(source: Path, tmp_path: Path, run) -> None:
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

    run("images", "-i", source, "-o", tmp_path / "out")

    cases = create_lists_from_splitted_dataset_folder(str(tmp_path / "out"), ".png")
    assert len(cases) == 9
    for files in cases:
        assert NaturalImage2DIO().read_images(files)[0].shape[:2] == (3, 1)


def test_the_result_does_not_depend_on_processes_and_nothing_else_is_left(source: Path, tmp_path: Path, run) -> None:
    run("images", "-i", source, "-o", tmp_path / "one" / "out")
    run("images", "-i", source, "-o", tmp_path / "two" / "out", "-np", 2)

    assert len(contents(tmp_path / "one")) == 10
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("bits", [14, 16])
def test_bits_sets_the_scale(bits: int, source: Path, tmp_path: Path, run) -> None:
    assert run("images", "-i", source, "-o", tmp_path / "out", "--bits", bits).status == 0

    expected = np.floor(rgb(RGB[..., 0]).astype(float) * 16 * 255 / (2**bits - 1) + 0.5)
    np.testing.assert_array_equal(read(tmp_path / "out" / "deep_0000.png"), expected)
    np.testing.assert_array_equal(read(tmp_path / "out" / "bitmap_0000.png"), RGB)
    assert json.loads((tmp_path / "out" / "conversion_report.json").read_text())["images"]["bits"] == bits


def transparent(folder: Path) -> Path:
    write(folder / "glass.png", np.dstack([RGB, RGB[..., :1]]))
    return folder / "glass.png"


def damaged(folder: Path) -> Path:
    path = folder / "lossless.tif"
    path.write_bytes(path.read_bytes()[:-300])
    return path


def other_format(folder: Path) -> Path:
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    return folder / "photo.heic"


def same_stem(folder: Path) -> Path:
    write(folder / "bitmap.png", RGB)
    return folder / "bitmap.png"


def other_case(folder: Path) -> Path:
    write(folder / "zeta.png", RGB)
    write(folder / "Zeta.png", RGB)
    return folder / "zeta.png"


def same_after_cleaning(folder: Path) -> Path:
    write(folder / "with_space.png", RGB)
    return folder / "with_space.png"


@pytest.mark.parametrize("spoil", [transparent, damaged, other_format, same_stem, other_case, same_after_cleaning])
def test_a_problem_is_named_and_nothing_is_written(spoil, source: Path, tmp_path: Path, run, error_of) -> None:
    path = spoil(source)
    before = sorted(tmp_path.iterdir())

    assert str(path) in error_of("images", "-i", source, "-o", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before

    result = run("images", "-i", source, "-o", tmp_path / "out", "--skip-bad")
    assert result.status == 0 and str(path) in result.stdout
    left_out = json.loads((tmp_path / "out" / "conversion_report.json").read_text())["left_out"]
    assert len(left_out) == 1 and f"new/{path.name} " in left_out[0]["why"]


def test_control_characters_in_names_are_escaped(source: Path, tmp_path: Path, run, error_of) -> None:
    (source / "x\x1b[31m\ny.png").write_bytes(b"")
    out = tmp_path / "o\x1b[2J\nut"

    message = error_of("images", "-i", source, "-o", out)
    assert "x\\x1b[31m\\ny.png is empty" in message and message.count("\n") == 1

    (source / "z\n.heic").write_bytes(b"")
    message = error_of("images", "-i", source, "-o", out)
    assert "z\\n.heic is neither" in message and message.count("\n") == 4

    result = run("images", "-i", source, "-o", out, "--skip-bad")
    assert result.status == 0 and out.is_dir()
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert lines[0].endswith("o\\x1b[2J\\nut is complete: 9 images")
    assert [line.endswith(("x\\x1b[31m\\ny.png is empty (0 bytes)", "z\\n.heic is neither an image nor a document"))
            for line in lines[2:4]] == [True, True]  # fmt: skip


def test_counts_of_one_are_singular(tmp_path: Path, run) -> None:
    write(tmp_path / "new" / "deep.png", RGB[..., 0].astype(np.uint16) * 16)
    (tmp_path / "new" / "bad.png").write_bytes(b"")
    result = run("images", "-i", tmp_path / "new", "-o", tmp_path / "out", "--skip-bad")
    assert result.status == 0
    for what in ("complete: 1 image\n", "with 1 problem:", "Scaled 1 image with"):
        assert what in result.stdout


def test_too_few_bits_are_named(source: Path, tmp_path: Path, error_of) -> None:
    assert str(source / "deep.png") in error_of("images", "-i", source, "-o", tmp_path / "out", "--bits", 10)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("taken", ["a folder with something in it", "a file", "the source"])
def test_nothing_is_overwritten(taken: str, source: Path, tmp_path: Path, error_of) -> None:
    output = source if taken == "the source" else tmp_path / "out"
    if taken == "a file":
        output.write_text("mine")
    elif output != source:
        write(output / "mine.png", RGB)
    before = contents(tmp_path)

    assert str(output) in error_of("images", "-i", source, "-o", output)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("make", ["missing", "file", "empty", "two"])
def test_a_source_that_is_not_one_folder_of_images_is_named(make: str, tmp_path: Path, error_of) -> None:
    source = tmp_path / "source"
    if make == "file":
        source.write_text("no folder")
    elif make != "missing":
        source.mkdir()
    if make == "two":
        write(source / "images" / "1.png", RGB)
        write(source / "masks" / "1.png", RGB)

    assert str(source) in error_of("images", "-i", source, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_output_folder_is_accepted(source: Path, tmp_path: Path, run) -> None:
    (tmp_path / "out").mkdir()
    assert run("images", "-i", source, "-o", tmp_path / "out").status == 0
    assert len(names(tmp_path / "out")) == 10
    # no temporary folder remains
    assert names(tmp_path) == ["new", "out"]


def test_the_command_starts_without_heavy_imports() -> None:
    code = "import sys, nnunet_mamba_mis.cli.convert_images; print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr

"""`mamba_mis convert`: exact on good data, one clear message and nothing left behind on bad data."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.dataset_conversion.options import Options
from nnunet_mamba_mis.utils.errors import UserError
from support.convert_trees import (
    command,
    contents,
    disc,
    names,
    only,
    photograph,
    read,
    rgb,
    write,
)

KVASIR_SEG = DATASETS["kvasir-seg"]
ISIC2017 = DATASETS["isic2017"]


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """ISIC 2017 in small, all three parts, with the things its downloads hold besides images."""
    source = tmp_path / "ISIC"
    for part, identifiers in {
        # sorted by file name, images and masks of the first two come in different order
        "Training": ("ISIC_1", "ISIC_10", "ISIC_2"),
        "Validation": ("ISIC_3", "ISIC_4"),
        "Test_v2": ("ISIC_5",),
    }.items():
        data, truth = source / f"ISIC-2017_{part}_Data", source / f"ISIC-2017_{part}_Part1_GroundTruth"
        for name in identifiers:
            size = (20 + int(name[5:]), 30)
            write(data / f"{name}.jpg", photograph(size, seed=int(name[5:])))
            write(data / f"{name}_superpixels.png", photograph(size))
            write(truth / f"{name}_segmentation.png", disc(size))
        (data / f"ISIC-2017_{part}_Data_metadata.csv").write_text("image_id,age_approximate,sex\n")
        (data / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (data / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (data / f"._{identifiers[0]}.jpg").write_bytes(b"\0\5\x16\7")
    write(source / "__MACOSX" / "ISIC-2017_Training_Data" / "ISIC_9.jpg", photograph((8, 8)))
    return source


def report(folder: Path) -> dict:
    return json.loads((folder / "conversion_report.json").read_text())


# good data


def test_kvasir_seg_is_converted_exactly(kvasir: Path, raw: Path, run) -> None:
    result = run("kvasir-seg", "-i", kvasir, "-d", 27, "-np", 2)

    assert result.status == 0, result.stderr
    assert result.stderr == ""
    assert names(raw) == ["Dataset027_KvasirSEG"]
    folder = raw / "Dataset027_KvasirSEG"
    assert names(folder) == ["conversion_report.json", "dataset.json", "imagesTr", "labelsTr", "splits_final.json"]
    cases = [f"cju{i}" for i in range(6)]
    assert names(folder / "imagesTr") == [f"{name}_0000.png" for name in cases]
    assert names(folder / "labelsTr") == [f"{name}.png" for name in cases]
    for name in cases:
        image, label = read(folder / "imagesTr" / f"{name}_0000.png"), read(folder / "labelsTr" / f"{name}.png")
        mask = read(only(kvasir, f"masks/{name}.jpg"))
        assert len(np.unique(mask)) > 2, "the source should have compression noise"
        np.testing.assert_array_equal(image, read(only(kvasir, f"images/{name}.jpg")))
        np.testing.assert_array_equal(label, disc(image.shape[:2], 1))
        assert label.dtype == np.uint8
    for text in (str(folder), "nnUNetv2_plan_and_preprocess -d 27", "nnUNetv2_train 27 2d 0 -tr nnUNetTrainerMambaMIS"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("dataset", "labels", "number"),
    [(KVASIR_SEG, {"background": 0, "polyp": 1}, 6), (ISIC2017, {"background": 0, "lesion": 1}, 3)],
    ids=["kvasir-seg", "isic2017"],
)
def test_dataset_json_says_all_that_nnunet_needs(dataset, labels, number, kvasir: Path, isic: Path, raw: Path) -> None:
    source = {KVASIR_SEG.name: kvasir, ISIC2017.name: isic}[dataset.name]
    folder = convert_dataset(dataset, [source], 1, name="Mine", processes=1).folder

    assert folder == raw / "Dataset001_Mine"
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": labels,
        "numTraining": number,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "name": "Mine",
        "description": dataset.title,
        "reference": f"{dataset.reference}; {dataset.url}",
        "licence": dataset.licence,
        "converted_by": f"nnunet-mamba-mis {__version__}",
    }


def test_nnunet_accepts_the_result(isic: Path, raw: Path, verify_with_nnunet) -> None:
    folder = convert_dataset(ISIC2017, [isic], 1, processes=1).folder

    verify_with_nnunet(folder)
    # the check has teeth
    write(folder / "labelsTr" / "ISIC_1.png", disc((21, 30), 255))
    with pytest.raises(RuntimeError):
        verify_with_nnunet(folder)


def test_isic2017_parts_become_training_and_test_sets(isic: Path, raw: Path) -> None:
    folder = convert_dataset(ISIC2017, [isic], 1, processes=1).folder

    assert {path.name: names(path) for path in folder.iterdir() if path.is_dir()} == {
        "imagesTr": ["ISIC_10_0000.png", "ISIC_1_0000.png", "ISIC_2_0000.png"],
        "labelsTr": ["ISIC_1.png", "ISIC_10.png", "ISIC_2.png"],
        "imagesTs_validation": ["ISIC_3_0000.png", "ISIC_4_0000.png"],
        "labelsTs_validation": ["ISIC_3.png", "ISIC_4.png"],
        "imagesTs_test": ["ISIC_5_0000.png"],
        "labelsTs_test": ["ISIC_5.png"],
    }
    for label in (folder / "labelsTr").iterdir():
        image = read(folder / "imagesTr" / f"{label.stem}_0000.png")
        np.testing.assert_array_equal(image, read(only(isic, f"*_Data/{label.stem}.jpg")))
        np.testing.assert_array_equal(read(label), disc(image.shape[:2], 1))


def test_a_single_test_set_is_imagests(isic: Path, raw: Path) -> None:
    for folder in isic.glob("ISIC-2017_Test_v2_*"):
        shutil.rmtree(folder)

    folder = convert_dataset(ISIC2017, [isic], 1, processes=1).folder

    assert names(folder) == [
        "conversion_report.json",
        "dataset.json",
        "imagesTr",
        "imagesTs",
        "labelsTr",
        "labelsTs",
        "splits_final.json",
    ]
    assert names(folder / "imagesTs") == ["ISIC_3_0000.png", "ISIC_4_0000.png"]
    assert names(folder / "labelsTs") == ["ISIC_3.png", "ISIC_4.png"]


def test_the_result_does_not_depend_on_the_number_of_processes(isic: Path, raw: Path) -> None:
    one = convert_dataset(ISIC2017, [isic], 1, name="A", processes=1).folder
    two = convert_dataset(ISIC2017, [isic], 2, name="A", processes=2).folder

    assert len(contents(one)) == 15
    assert contents(one) == contents(two)


def test_sources_may_be_several_overlap_and_be_the_folders_themselves(kvasir: Path, tmp_path: Path, raw: Path) -> None:
    images, masks = only(kvasir, "images"), only(kvasir, "masks")
    images.rename(tmp_path / "images")
    (masks / "masks").mkdir()
    for path in masks.glob("*.jpg"):
        path.rename(masks / "masks" / path.name)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "loop").symlink_to(kvasir, target_is_directory=True)
    (kvasir / "loop").symlink_to(tmp_path / "linked", target_is_directory=True)

    folder = convert_dataset(KVASIR_SEG, [tmp_path / "images", tmp_path / "linked", kvasir], 1, processes=1).folder

    assert len(names(folder / "imagesTr")) == 6


def test_grey_images_get_three_channels(kvasir: Path, raw: Path) -> None:
    path = only(kvasir, "images/cju0.jpg")
    write(path, photograph((24, 40))[..., 0])

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "imagesTr" / "cju0_0000.png"), rgb(read(path)))


@pytest.mark.parametrize("value", [1, 7, 127, 128, 248, 254])
def test_mask_values_above_127_are_foreground(value: int, kvasir: Path, raw: Path) -> None:
    mask = disc((64, 64))
    mask[0, :3] = value
    only(kvasir, "masks/cju0.jpg").unlink()
    write(only(kvasir, "masks") / "cju0.png", mask)
    write(only(kvasir, "images/cju0.jpg"), photograph((64, 64)))

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "labelsTr" / "cju0.png"), mask > 127)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 200, 0), (255, 255, 255)])
def test_a_mask_may_be_painted_in_a_colour(colour: tuple[int, int, int], kvasir: Path, raw: Path, run) -> None:
    mask = disc((64, 64), 1)[..., None] * np.array(colour, np.uint8)
    only(kvasir, "masks/cju0.jpg").unlink()
    write(only(kvasir, "masks") / "cju0.bmp", mask)
    write(only(kvasir, "images/cju0.jpg"), photograph((64, 64)))

    result = run("kvasir-seg", "-i", kvasir, "-d", 1, "-np", 1)

    if colour == (0, 200, 0):
        assert "192-223" in result.stderr, "a histogram"
    else:
        np.testing.assert_array_equal(read(raw / "Dataset001_KvasirSEG" / "labelsTr" / "cju0.png"), disc((64, 64), 1))


def test_masks_of_a_whole_source_may_be_label_maps(kvasir: Path, raw: Path) -> None:
    for path in list(only(kvasir, "masks").iterdir()):
        write(path.with_suffix(".png"), (read(path)[..., 0] > 127).astype(np.uint8))
        path.unlink()

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "labelsTr" / "cju0.png"), disc((24, 40), 1))
    assert report(folder)["masks"]["brightest"] == 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_exif_orientation_is_applied_to_both(orientation: int, kvasir: Path, raw: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (only(kvasir, "images/cju0.jpg"), only(kvasir, "masks/cju0.jpg")):
        write(path, read(path), exif=exif)

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    for path, out in (("images", "imagesTr/cju0_0000.png"), ("masks", "labelsTr/cju0.png")):
        with Image.open(only(kvasir, f"{path}/cju0.jpg")) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(read(folder / out), expected if path == "images" else expected[..., 0] > 127)
    assert report(folder)["cases"][0]["done"] == [f"EXIF orientation {orientation} applied"]


@pytest.mark.parametrize("of", ["images", "masks"])
def test_an_exif_orientation_of_one_alone_is_refused(of: str, kvasir: Path, raw: Path, error_of) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    path = only(kvasir, f"{of}/cju0.jpg")
    write(path, read(path), exif=exif)

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1)

    assert "cju0.jpg" in message and "size mismatch" in message


def test_opaque_alpha_and_palettes_lose_nothing(kvasir: Path, raw: Path) -> None:
    image, mask = only(kvasir, "images/cju0.jpg"), only(kvasir, "masks/cju0.jpg")
    pixels = read(image)
    write(image.with_suffix(".png"), np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]))
    indexed = Image.fromarray(disc((24, 40), 1)).convert("P")
    indexed.putpalette([0, 0, 0, 255, 255, 255])
    indexed.save(mask.with_suffix(".png"))
    image.unlink()
    mask.unlink()

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "imagesTr" / "cju0_0000.png"), pixels)
    np.testing.assert_array_equal(read(folder / "labelsTr" / "cju0.png"), disc((24, 40), 1))
    assert report(folder)["cases"][0]["done"] == ["RGBA to RGB"]


@pytest.mark.parametrize("side", [16, 64], ids=["smaller", "larger"])
@pytest.mark.parametrize("keep_aspect", [False, True], ids=["stretched", "padded"])
def test_resize(side: int, keep_aspect: bool, kvasir: Path, raw: Path) -> None:
    folder = convert_dataset(
        KVASIR_SEG, [kvasir], 1, processes=1, options=Options(resize=side, keep_aspect=keep_aspect)
    ).folder

    image, label = read(folder / "imagesTr" / "cju0_0000.png"), read(folder / "labelsTr" / "cju0.png")
    assert image.shape == (side, side, 3) and label.shape == (side, side)
    assert np.unique(label).tolist() == [0, 1]
    source = read(only(kvasir, "images/cju0.jpg"))
    border = (side - round(24 * side / 40)) // 2
    if keep_aspect:
        assert not image[:border].any() and not label[:border].any() and image[border:-border].any(axis=2).mean() > 0.9
        image, label = image[border : side - border], label[border : side - border]
    assert abs(image.mean() - source.mean()) < 4
    assert abs(label.mean() - disc((24, 40), 1).mean()) < 0.03
    case = report(folder)["cases"][0]
    assert case["original_size"] == [40, 24]
    assert case["done"] == [f"resized to {side} × {side}, {'padded' if keep_aspect else 'stretched'}"]


def test_the_report_says_where_every_case_comes_from(isic: Path, raw: Path) -> None:
    folder = convert_dataset(ISIC2017, [isic], 1, processes=1).folder

    written = report(folder)
    assert written["number_of_cases"] == {"Tr": 3, "test": 1, "validation": 2}
    assert [case["identifier"] for case in written["cases"]] == [f"ISIC_{i}" for i in (1, 10, 2, 3, 4, 5)]
    for case in written["cases"]:
        for kind in ("image", "mask"):
            data = (isic.parent / case[kind]["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == case[kind]["sha256"]
        assert case["original_size"] == [30, 20 + int(case["identifier"][5:])]
        assert case["done"] == []


@pytest.mark.parametrize("stray", ["after the end", "before the end"])
def test_a_jpeg_with_harmless_stray_bytes_is_converted(stray: str, kvasir: Path, raw: Path) -> None:
    path = only(kvasir, "images/cju0.jpg")
    pixels, data = read(path), path.read_bytes()
    path.write_bytes(data + bytes(64) if stray == "after the end" else data[:-2] + bytes(8) + data[-2:])

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "imagesTr" / "cju0_0000.png"), pixels)


@pytest.mark.parametrize(
    ("number", "expected"), [(0, []), (1, [5]), (2, [2, 7]), (3, [1, 5, 8])], ids=["none", "one", "two", "three"]
)
def test_held_out_cases_are_spread_evenly(number: int, expected: list[int], tmp_path: Path, raw: Path) -> None:
    for i in range(10):
        write(tmp_path / "images" / f"c{i}.png", photograph((8, 8), i))
        write(tmp_path / "masks" / f"c{i}.png", disc((8, 8)))

    folder = convert_dataset(KVASIR_SEG, [tmp_path], 1, processes=1, options=Options(hold_out=number)).folder

    assert sorted(path.stem for path in folder.glob("labelsTs/*")) == [f"c{i}" for i in expected]
    assert sorted(path.name for path in folder.glob("imagesTs/*")) == [f"c{i}_0000.png" for i in expected]
    assert len(names(folder / "imagesTr")) == json.loads((folder / "dataset.json").read_text())["numTraining"]
    assert len(names(folder / "imagesTr")) == 10 - number
    assert (folder / "imagesTs").exists() == bool(number)


@pytest.mark.parametrize("number", [-1, 6, 7])
def test_a_training_case_must_remain(number: int, kvasir: Path, raw: Path) -> None:
    with pytest.raises(UserError, match=f"--hold-out {number}"):
        convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1, options=Options(hold_out=number))
    assert names(raw) == []


@pytest.mark.parametrize("columns", [80, 200])
def test_list_fits_a_terminal_and_tells_all(columns: int, monkeypatch: pytest.MonkeyPatch, run) -> None:
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


# bad data: what is done to Kvasir-SEG's case cju1, and what the message must say besides the file's name


def _empty(image: Path, mask: Path) -> Path:
    image.write_bytes(b"")
    return image


def _lfs_pointer(image: Path, mask: Path) -> Path:
    mask.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    return mask


def _text(image: Path, mask: Path) -> Path:
    image.write_text("<!DOCTYPE html><title>404</title>" * 10)
    return image


def _truncated_jpeg(image: Path, mask: Path) -> Path:
    # a thumbnail in the header does not count as the end of the image
    data = image.read_bytes()
    thumbnail = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    image.write_bytes((data[:2] + thumbnail + data[2:])[:-200])
    return image


def _damaged_jpeg(image: Path, mask: Path) -> Path:
    # in the header all is well and the end is there: only decoding shows it
    data = image.read_bytes()
    image.write_bytes(data[:-300] + bytes(298) + data[-2:])
    return image


def _truncated_png(image: Path, mask: Path) -> Path:
    path = mask.with_suffix(".png")
    write(path, read(mask))
    mask.unlink()
    path.write_bytes(path.read_bytes()[:-30])
    return path


def _truncated_bmp(image: Path, mask: Path) -> Path:
    path = mask.with_suffix(".bmp")
    write(path, read(mask))
    mask.unlink()
    path.write_bytes(path.read_bytes()[:-200])
    return path


def _wrong_suffix(image: Path, mask: Path) -> Path:
    return image.rename(image.with_suffix(".png"))


def _alpha(image: Path, mask: Path) -> Path:
    path = image.with_suffix(".png")
    pixels = read(image)
    image.unlink()
    write(path, np.concatenate([pixels, pixels[..., :1]], axis=-1))
    return path


def _16_bit(image: Path, mask: Path) -> Path:
    path = image.with_suffix(".png")
    write(path, read(image)[..., 0].astype(np.uint16) * 257)
    image.unlink()
    return path


def _labels(image: Path, mask: Path) -> Path:
    path = mask.with_suffix(".png")
    write(path, (read(mask) > 127).astype(np.uint8))
    mask.unlink()
    return path


def _other_size(image: Path, mask: Path) -> Path:
    write(mask, rgb(disc((39, 25))))
    return mask


def _no_mask(image: Path, mask: Path) -> Path:
    mask.unlink()
    return image


def _no_image(image: Path, mask: Path) -> Path:
    image.unlink()
    return mask


def _soft(image: Path, mask: Path) -> Path:
    write(mask, rgb(np.linspace(0, 255, 25 * 39).astype(np.uint8).reshape(25, 39)))
    return mask


def _nothing(image: Path, mask: Path) -> Path:
    write(mask, np.zeros((25, 39, 3), np.uint8))
    return mask


def _image_as_mask(image: Path, mask: Path) -> Path:
    shutil.copy(image, mask)
    return mask


def _foreign(image: Path, mask: Path) -> Path:
    # as a browser leaves a download that was broken off
    path = image.with_suffix(".jpg.crdownload")
    path.write_bytes(b"\xff\xd8\xff")
    return path


def _cmyk(image: Path, mask: Path) -> Path:
    Image.fromarray(read(image)).convert("CMYK").save(image)
    return image


def _turned_tiff(image: Path, mask: Path) -> Path:
    path = image.with_suffix(".tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    write(path, read(image), exif=exif)
    image.unlink()
    return path


def _huge(image: Path, mask: Path) -> Path:
    # a header that claims 60000 × 60000 pixels, of which none is there
    path = mask.with_suffix(".png")
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    mask.unlink()
    return path


def _twice(image: Path, mask: Path) -> Path:
    write(image.with_suffix(".png"), read(image))
    return image.with_suffix(".png")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_empty, "is empty (0 bytes)"),
        (_lfs_pointer, "git lfs pull"),
        (_text, "is not an image"),
        (_truncated_jpeg, "is truncated or damaged"),
        (_damaged_jpeg, "is truncated or damaged"),
        (_truncated_png, "is truncated or damaged"),
        (_truncated_bmp, "is truncated or damaged"),
        (_wrong_suffix, "is in truth a .jpg file"),
        (_alpha, "has transparent pixels"),
        (_16_bit, "8 bits a channel"),
        (_labels, "no value above 1, expected 0 and 255"),
        (_other_size, "is 25 × 39 pixels, but its image"),
        (_no_mask, "has no mask cju1.*"),
        (_no_image, "has no image cju1.*"),
        (_twice, "same case identifier as"),
        (_soft, "is not clearly a mask"),
        (_nothing, "is empty: nothing is drawn in it (empty mask)"),
        (_image_as_mask, "is the same file as its image"),
        (_foreign, "is neither an image nor a document"),
        (_cmyk, "8 bits a channel"),
        (_turned_tiff, "is a TIFF with orientation 6"),
        (_huge, "claims more than 80 million pixels"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_bad_file_is_named_and_nothing_is_left(
    spoil: Callable[[Path, Path], Path], reason: str, kvasir: Path, raw: Path, error_of
) -> None:
    path = spoil(only(kvasir, "images/cju1.jpg"), only(kvasir, "masks/cju1.jpg"))

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1, "-np", 1)

    assert f"error: {path} " in message
    assert reason in message
    assert len(message.splitlines()) == 1
    assert names(raw) == []


def test_a_file_that_fails_in_a_worker_process_is_named_too(kvasir: Path, raw: Path, error_of) -> None:
    png = _truncated_png(only(kvasir, "images/cju1.jpg"), only(kvasir, "masks/cju1.jpg"))
    jpeg = _damaged_jpeg(only(kvasir, "images/cju2.jpg"), only(kvasir, "masks/cju2.jpg"))

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1, "-np", 2)

    assert "unreadable: 2" in message
    for path in (png, jpeg):
        assert f"unreadable: {path} " in message
    assert names(raw) == []


def test_ten_of_many_bad_files_are_listed(tmp_path: Path, raw: Path) -> None:
    for i in range(14):
        write(tmp_path / "images" / f"c{i:02}.png", photograph((8, 8)))
        write(tmp_path / "masks" / f"c{i:02}.png", disc((8, 8)))
        if i > 1:
            (tmp_path / "images" / f"c{i:02}.png").write_bytes(b"")

    with pytest.raises(UserError) as error:
        convert_dataset(KVASIR_SEG, [tmp_path], 1, processes=1)

    lines = str(error.value).splitlines()
    assert lines[0] == "12 problems in the source (unreadable: 12):"
    assert lines[1:11] == [f"  unreadable: {tmp_path}/images/c{i:02}.png is empty (0 bytes)" for i in range(2, 12)]
    assert lines[11] == "  and 2 more"
    assert names(raw) == []


def test_an_identifier_in_two_parts_is_refused(isic: Path, raw: Path, error_of) -> None:
    twin = only(isic, "ISIC-2017_Validation_Data") / "ISIC_1.jpg"
    shutil.copy(only(isic, "*_Data/ISIC_3.jpg"), twin)
    shutil.copy(only(isic, "ISIC_3_segmentation.png"), only(isic, "*Validation*Truth") / "ISIC_1_segmentation.png")

    message = error_of("isic2017", "-i", isic, "-d", 1)

    assert str(twin) in message and str(only(isic, "*Training_Data/ISIC_1.jpg")) in message
    assert names(raw) == []


@pytest.mark.parametrize(
    ("remove", "named"),
    [
        ("ISIC-2017_Training_*", ["ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"]),
        ("ISIC-2017_Training_Data", ["ISIC-2017_Training_Data"]),
        ("ISIC-2017_Validation_Part1_GroundTruth", ["ISIC-2017_Validation_Part1_GroundTruth"]),
    ],
    ids=["no training part", "no training images", "no validation masks"],
)
def test_a_missing_folder_is_named(remove: str, named: list[str], isic: Path, raw: Path, error_of) -> None:
    for folder in isic.glob(remove):
        shutil.rmtree(folder)

    message = error_of("isic2017", "-i", isic, "-d", 1)

    assert all(name in message for name in [*named, str(isic)])
    assert names(raw) == []


def test_folders_that_are_there_twice_are_named(kvasir: Path, raw: Path, error_of) -> None:
    shutil.copytree(only(kvasir, "images").parent, kvasir / "copy")

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1)

    assert str(kvasir / "copy" / "images") in message
    assert str(kvasir / "Kvasir-SEG" / "Kvasir-SEG" / "images") in message
    assert names(raw) == []


# bad arguments and places


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
        (lambda path: path.mkdir(), "found no folder images and no folder masks with images in it"),
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
def test_an_id_in_use_is_refused_and_a_free_one_named(
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


def test_nnunet_raw_may_be_a_folder_yet_to_be_made(kvasir: Path, raw: Path) -> None:
    raw.rmdir()
    assert convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder.is_dir()


def test_a_target_that_cannot_be_made_is_named(kvasir: Path, raw: Path, error_of) -> None:
    raw.rmdir()
    raw.write_text("a file")
    assert str(raw / "Dataset001_KvasirSEG") in error_of("kvasir-seg", "-i", kvasir, "-d", 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_cannot_be_written_leaves_nothing(processes: int, kvasir: Path, raw: Path) -> None:
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
def test_ctrl_c_leaves_nothing(processes: int, sign: str, pairs, raw: Path) -> None:
    arguments = command("kvasir-seg", "-i", pairs(30, 600), "-d", 1, "-np", processes)
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 30
        while not list(raw.glob(sign)):
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.02)
        time.sleep(0.05)
        # as a terminal does, to all its processes
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    assert (stdout, stderr) == ("", "mamba_mis: interrupted\n")
    assert names(raw) == []


# real data


def test_real_kvasir_seg(shared: Path, tmp_path: Path, raw: Path, run) -> None:
    source = shared / "data" / "Kvasir-SEG"
    if not source.is_dir():
        pytest.skip(f"{source} is not here")
    chosen = sorted(path.name for path in (source / "images").iterdir())[::45]
    for folder in ("images", "masks"):
        (tmp_path / "Kvasir-SEG" / folder).mkdir(parents=True)
        for name in chosen:
            shutil.copy(source / folder / name, tmp_path / "Kvasir-SEG" / folder)

    result = run("kvasir-seg", "-i", tmp_path / "Kvasir-SEG", "-d", 1, "-np", 2)

    assert result.status == 0, result.stderr
    assert len(chosen) == 6
    _assert_matches(raw / "Dataset001_KvasirSEG", "Tr", [Path(name) for name in chosen], source / "images")
    for name in chosen:
        label = read(raw / "Dataset001_KvasirSEG" / "labelsTr" / f"{Path(name).stem}.png")
        np.testing.assert_array_equal(label, read(source / "masks" / name)[..., 0] > 127)


def test_real_isic2017(shared: Path, tmp_path: Path, raw: Path, run) -> None:
    source = shared / "data" / "ISIC-2017"
    if not source.is_dir():
        pytest.skip(f"{source} is not here")
    images = sorted((source / "ISIC-2017_Validation_Data").iterdir())
    # the four smallest for training: these are the full-size images
    images.sort(key=lambda path: path.stat().st_size)
    for part, chosen in (("Training", images[:4]), ("Validation", images[4:6])):
        data, truth = (tmp_path / f"ISIC-2017_{part}_{kind}" for kind in ("Data", "Part1_GroundTruth"))
        data.mkdir()
        truth.mkdir()
        for path in chosen:
            shutil.copy(path, data)
            shutil.copy(source / "ISIC-2017_Validation_Part1_GroundTruth" / f"{path.stem}_segmentation.png", truth)

    result = run("isic2017", "-i", tmp_path, "-d", 1, "-np", 2)

    assert result.status == 0, result.stderr
    folder = raw / "Dataset001_ISIC2017"
    _assert_matches(folder, "Tr", images[:4], source / "ISIC-2017_Validation_Data")
    _assert_matches(folder, "Ts", images[4:6], source / "ISIC-2017_Validation_Data")


def _assert_matches(folder: Path, subset: str, images: list[Path], source: Path) -> None:
    assert names(folder / f"labels{subset}") == sorted(f"{path.stem}.png" for path in images)
    for path in images:
        image = read(folder / f"images{subset}" / f"{path.stem}_0000.png")
        label = read(folder / f"labels{subset}" / f"{path.stem}.png")
        np.testing.assert_array_equal(image, read(source / path.name))
        assert label.shape == image.shape[:2]
        assert np.unique(label).tolist() == [0, 1]


def test_output_that_is_not_read_to_its_end_is_no_error():
    command = f"{Path(sys.executable).with_name('mamba_mis')} convert --list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 141) and not done.stderr

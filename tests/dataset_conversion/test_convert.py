"""Good data is converted exactly."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.dataset_conversion.options import Options
from support.convert_trees import contents, names, only, photograph, read, report, rgb, write
from support.images import centred_disc

KVASIR_SEG = DATASETS["kvasir-seg"]
ISIC2017 = DATASETS["isic2017"]


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
        assert len(np.unique(mask)) > 2, "the source has compression noise"
        np.testing.assert_array_equal(image, read(only(kvasir, f"images/{name}.jpg")))
        np.testing.assert_array_equal(label, centred_disc(image.shape[:2], 1))
        assert label.dtype == np.uint8
    for text in (str(folder), "nnUNetv2_plan_and_preprocess -d 27", "nnUNetv2_train 27 2d 0 -tr nnUNetTrainerMambaMIS"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("dataset", "labels", "number"),
    [(KVASIR_SEG, {"background": 0, "polyp": 1}, 6), (ISIC2017, {"background": 0, "lesion": 1}, 3)],
    ids=["kvasir-seg", "isic2017"],
)
def test_dataset_json_is_complete(dataset, labels, number, kvasir: Path, isic: Path, raw: Path) -> None:
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
    # make sure that the check can fail
    write(folder / "labelsTr" / "ISIC_1.png", centred_disc((21, 30), 255))
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
        np.testing.assert_array_equal(read(label), centred_disc(image.shape[:2], 1))


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


def test_sources_may_overlap_and_may_be_the_image_folders_themselves(kvasir: Path, tmp_path: Path, raw: Path) -> None:
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


def test_masks_may_be_label_maps_if_all_are(kvasir: Path, raw: Path) -> None:
    for path in list(only(kvasir, "masks").iterdir()):
        write(path.with_suffix(".png"), (read(path)[..., 0] > 127).astype(np.uint8))
        path.unlink()

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "labelsTr" / "cju0.png"), centred_disc((24, 40), 1))
    assert report(folder)["masks"]["brightest"] == 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_exif_orientation_is_applied_to_image_and_mask(orientation: int, kvasir: Path, raw: Path) -> None:
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
def test_an_exif_orientation_of_only_image_or_mask_is_refused(of: str, kvasir: Path, raw: Path, error_of) -> None:
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
    indexed = Image.fromarray(centred_disc((24, 40), 1)).convert("P")
    indexed.putpalette([0, 0, 0, 255, 255, 255])
    indexed.save(mask.with_suffix(".png"))
    image.unlink()
    mask.unlink()

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "imagesTr" / "cju0_0000.png"), pixels)
    np.testing.assert_array_equal(read(folder / "labelsTr" / "cju0.png"), centred_disc((24, 40), 1))
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
    assert abs(label.mean() - centred_disc((24, 40), 1).mean()) < 0.03
    case = report(folder)["cases"][0]
    assert case["original_size"] == [40, 24]
    assert case["done"] == [f"resized to {side} × {side}, {'padded' if keep_aspect else 'stretched'}"]


def test_the_report_names_the_source_of_every_case(isic: Path, raw: Path) -> None:
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
        write(tmp_path / "masks" / f"c{i}.png", centred_disc((8, 8)))

    folder = convert_dataset(KVASIR_SEG, [tmp_path], 1, processes=1, options=Options(hold_out=number)).folder

    assert sorted(path.stem for path in folder.glob("labelsTs/*")) == [f"c{i}" for i in expected]
    assert sorted(path.name for path in folder.glob("imagesTs/*")) == [f"c{i}_0000.png" for i in expected]
    assert len(names(folder / "imagesTr")) == json.loads((folder / "dataset.json").read_text())["numTraining"]
    assert len(names(folder / "imagesTr")) == 10 - number
    assert (folder / "imagesTs").exists() == bool(number)


def test_real_kvasir_seg(shared: Path, tmp_path: Path, raw: Path, run) -> None:
    source = shared / "data" / "Kvasir-SEG"
    if not source.is_dir():
        pytest.skip(f"{source} does not exist")
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
        pytest.skip(f"{source} does not exist")
    images = sorted((source / "ISIC-2017_Validation_Data").iterdir())
    # use the smallest files, four of them for training, as these images have their original size
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

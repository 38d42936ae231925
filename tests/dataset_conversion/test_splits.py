"""Folds that never separate related cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split
from PIL import Image

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.dataset_conversion.dataset import Case
from nnunet_mamba_mis.dataset_conversion.datasets.cvc_clinicdb import sequences
from nnunet_mamba_mis.dataset_conversion.options import Options
from nnunet_mamba_mis.dataset_conversion.overlaps import trained_on
from nnunet_mamba_mis.dataset_conversion.splits import grouped_folds, groups_to_keep
from support.convert_trees import (
    cvc_clinicdb_tif,
    ham10000,
    isic2017,
    isic2018,
    photograph,
    polypgen,
    read,
    report,
    write,
    write_kvasir,
    write_pair,
)

pytestmark = pytest.mark.usefixtures("preprocessed")


def splits_of(folder: Path) -> list[dict[str, list[str]]]:
    here = (folder / "splits_final.json").read_bytes()
    # nnU-Net reads the copy in nnUNet_preprocessed
    assert (folder.parent.parent / "nnUNet_preprocessed" / folder.name / "splits_final.json").read_bytes() == here
    return json.loads(here)


def fold_of(splits: list[dict[str, list[str]]]) -> dict[str, int]:
    return {identifier: i for i, split in enumerate(splits) for identifier in split["val"]}


def convert(name: str, *sources: Path, **options) -> Path:
    return convert_dataset(DATASETS[name], sources, 1, processes=1, options=Options(**options)).folder


def test_every_case_is_validated_once(tmp_path: Path, raw: Path) -> None:
    splits = splits_of(convert("kvasir-seg", write_kvasir(tmp_path / "source", 12)))

    assert len(splits) == 5
    everything = sorted(f"cju{i}" for i in range(12))
    assert sorted(name for split in splits for name in split["val"]) == everything
    for split in splits:
        assert sorted(split["train"] + split["val"]) == everything
        assert 2 <= len(split["val"]) <= 3


def test_frames_of_a_sequence_stay_together(tmp_path: Path, raw: Path) -> None:
    cvc_clinicdb_tif(tmp_path / "source")
    folder = convert("cvc-clinicdb", tmp_path / "source")

    fold = fold_of(splits_of(folder))
    assert fold["1"] == fold["2"] == fold["10"] == fold["25"]
    assert fold["26"] != fold["1"] != fold["612"] != fold["26"]
    recorded = report(folder)["splits"]
    assert "sequence of CVC-ClinicDB" in recorded["rule"]
    assert recorded["groups"] == [["1", "10", "2", "25"]]


def test_frame_numbers_map_to_the_published_sequences() -> None:
    cases = [Case(str(i), Path("i"), Path("m")) for i in range(1, 613)]
    names = [*sequences([], cases).values()]
    assert len(set(names)) == 29
    assert [names[i] for i in (0, 24, 25, 49, 590, 591, 611)] == [f"sequence {n}" for n in (1, 1, 2, 2, 28, 29, 29)]


@pytest.mark.parametrize(
    ("layout", "groups"),
    [
        (ham10000, [[f"ISIC_{i:07}", f"ISIC_{i + 1:07}"] for i in range(0, 8, 2)]),
        (polypgen, [[f"C{i}_100H0001", f"C{i}_100H0002"] for i in range(1, 7)]),
    ],
    ids=["lesions", "centres"],
)
def test_images_of_a_group_stay_together(layout, groups: list[list[str]], tmp_path: Path, raw: Path) -> None:
    layout(tmp_path)
    fold = fold_of(splits_of(convert(layout.__name__, tmp_path)))
    assert all(len({fold[identifier] for identifier in group}) == 1 for group in groups)
    assert len(set(fold.values())) == min(5, len(groups))


def test_near_duplicates_stay_together(tmp_path: Path, raw: Path) -> None:
    source = tmp_path / "source"
    for i in range(10):
        write_pair(source / "images" / f"c{i}.png", source / "masks" / f"c{i}.png", i, (96, 128))
    # the image of c3 again, but darker, smaller and compressed as JPEG
    image = Image.fromarray(photograph((96, 128), 3)).resize((100, 75))
    write(source / "images" / "c_again.jpg", (np.asarray(image) * 0.8).astype(np.uint8))
    write(source / "masks" / "c_again.png", read(source / "masks" / "c3.png")[:75, :100])
    folder = convert("kvasir-seg", source)

    fold = fold_of(splits_of(folder))
    assert fold["c_again"] == fold["c3"]
    written = report(folder)
    assert [set(pair) for pair in written["duplicates"]] == [{"c3", "c_again"}]
    assert any("c3" in warning and "c_again" in warning for warning in written["warnings"])


def test_folds_are_even_and_do_not_depend_on_order() -> None:
    identifiers = [f"c{i}" for i in range(100)]
    group_of = {f"c{i}": f"g{i // 7}" for i in range(70)}

    groups = groups_to_keep(identifiers, group_of, [("c71", "c72"), ("c72", "c99")])
    folds = grouped_folds(identifiers, groups)

    assert all(18 <= len(split["val"]) <= 22 for split in folds)
    fold = fold_of(folds)
    assert fold["c71"] == fold["c72"] == fold["c99"]
    assert all(fold[f"c{i}"] == fold[f"c{i // 7 * 7}"] for i in range(70))
    backwards = identifiers[::-1]
    shuffled = grouped_folds(backwards, groups_to_keep(backwards, group_of, [("c72", "c99"), ("c71", "c72")]))
    assert [sorted(split["val"]) for split in shuffled] == [split["val"] for split in folds]


def test_one_group_cannot_be_split(tmp_path: Path, raw: Path, run) -> None:
    for i in (1, 2, 3):
        write_pair(tmp_path / "s" / "Original" / f"{i}.png", tmp_path / "s" / "Ground Truth" / f"{i}.png", i)

    result = run("cvc-clinicdb", "-i", tmp_path / "s", "-d", 1)

    assert result.status == 0, result.stderr
    assert result.stderr.startswith("mamba_mis: warning: ")
    assert not (raw / "Dataset001_CVCClinicDB" / "splits_final.json").exists()


@pytest.mark.parametrize(("name", "layout"), [("isic2017", isic2017), ("isic2018", isic2018)])
def test_official_split(name: str, layout, tmp_path: Path, raw: Path) -> None:
    layout(tmp_path / "isic")
    folder = convert(name, tmp_path / "isic", official=True)

    (split,) = splits_of(folder)
    validation = ["ISIC_0000013", "ISIC_0000014"] if name == "isic2017" else ["ISIC_0000023", "ISIC_0000024"]
    assert split["val"] == validation and len(split["train"]) == 3
    assert {f"{i}.png" for i in split["train"] + split["val"]} == {p.name for p in (folder / "labelsTr").iterdir()}
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 5
    assert (folder / "imagesTs").is_dir()
    assert report(folder)["splits"]["rule"] == "one fold: the official training and validation sets"


def test_official_split_is_refused_without_an_official_validation_set(tmp_path: Path, raw: Path, error_of) -> None:
    source = write_kvasir(tmp_path / "source", 3)
    assert "--official-split: kvasir-seg" in error_of("kvasir-seg", "-i", source, "-d", 1, "--official-split")
    isic2017(tmp_path / "isic")
    for part in ("Data", "Part1_GroundTruth"):
        (tmp_path / "isic" / f"ISIC-2017_Validation_{part}").rename(tmp_path / part)
    message = error_of("isic2017", "-i", tmp_path / "isic", "-d", 1, "--official-split")
    assert "--official-split" in message and "validation" in message


def test_isic_years_that_share_images_cause_a_warning(tmp_path: Path, raw: Path, run) -> None:
    for layout in (isic2017, isic2018):
        layout(tmp_path / layout.__name__)
    results = []
    for year in ("2017", "2018"):
        results.append(run(f"isic{year}", "-i", tmp_path / f"isic{year}", "-d", year[2:], "-np", 1))
        assert results[-1].status == 0, results[-1].stderr
    assert "ISIC_0016072" in results[0].stderr and "2018 training set" in results[0].stderr
    assert "ISIC_0016072" in results[1].stderr and "2017 test set" in results[1].stderr
    # besides the warning about the known leak, there is one about a dataset in nnUNet_raw
    assert "Dataset017_ISIC2017" in results[1].stderr
    assert any("ISIC_0016072" in warning for warning in report(raw / "Dataset018_ISIC2018")["warnings"])


def test_an_image_in_training_and_test_set_causes_a_warning(tmp_path: Path, raw: Path, run) -> None:
    isic2017(tmp_path / "isic")
    train, test = (tmp_path / "isic" / f"ISIC-2017_{part}_Data" for part in ("Training", "Test_v2"))
    (test / "ISIC_0000015.jpg").write_bytes((train / "ISIC_0000010.jpg").read_bytes())

    result = run("isic2017", "-i", tmp_path / "isic", "-d", 1, "-np", 1)

    assert result.status == 0
    assert "the training set and the test set" in result.stderr and "ISIC_0000010 = ISIC_0000015" in result.stderr


def test_resized_training_images_are_recognised_in_another_dataset(tmp_path: Path, raw: Path) -> None:
    source, copies = tmp_path / "Kvasir-SEG", tmp_path / "copies"
    for i in range(6):
        write_pair(source / "images" / f"cju{i}.jpg", source / "masks" / f"cju{i}.jpg", seed=i, size=(96, 128))
    write_pair(copies / "images" / "new.png", copies / "masks" / "new.png", seed=99)
    for i in (1, 4):
        write_pair(tmp_path / "any.png", copies / "masks" / f"copy{i}.png", seed=0, size=(64, 64))
        with Image.open(source / "images" / f"cju{i}.jpg") as original:
            write(copies / "images" / f"copy{i}.png", np.asarray(original.resize((64, 64))))
    kvasir = convert("kvasir-seg", source)
    sources = (copies / "images", copies / "masks")
    other = convert_dataset(DATASETS["folder"], sources, 2, processes=1).folder
    assert trained_on(kvasir, other, ["new", "copy1", "copy4"]) == ["copy1", "copy4"]
    assert trained_on(kvasir, other, ["new", "copy1"]) == ["copy1"]
    assert trained_on(kvasir, tmp_path, ["new"]) is None


def test_without_nnunet_preprocessed_the_output_says_where_to_copy_the_splits(
    tmp_path: Path, raw: Path, monkeypatch, run
) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    result = run("kvasir-seg", "-i", write_kvasir(tmp_path / "source", 5), "-d", 1, "-np", 1)

    splits = raw / "Dataset001_KvasirSEG" / "splits_final.json"
    assert splits.exists()
    assert "nnUNet_preprocessed" in result.stdout and str(splits) in result.stdout


def test_the_dataset_is_kept_if_nnunets_splits_cannot_be_written(tmp_path: Path, raw: Path, monkeypatch, run) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "no folder"))
    result = run("kvasir-seg", "-i", write_kvasir(tmp_path / "source", 5), "-d", 1, "-np", 1)

    assert result.status == 0
    splits = raw / "Dataset001_KvasirSEG" / "splits_final.json"
    assert splits.exists()
    for_nnunet = tmp_path / "no folder" / "Dataset001_KvasirSEG" / "splits_final.json"
    assert str(for_nnunet) in result.stdout and str(splits) in result.stdout


def test_training_images_that_copy_the_same_test_image_stay_together(tmp_path: Path, raw: Path) -> None:
    isic2017(tmp_path / "isic")
    train, test = (tmp_path / "isic" / f"ISIC-2017_{part}_Data" for part in ("Training", "Test_v2"))
    truth = tmp_path / "isic" / "ISIC-2017_Test_v2_Part1_GroundTruth"
    write_pair(test / "ISIC_0000001.jpg", truth / "ISIC_0000001_segmentation.png", 1)
    for number in (10, 11):
        (train / f"ISIC_00000{number}.jpg").write_bytes((test / "ISIC_0000001.jpg").read_bytes())

    fold = fold_of(splits_of(convert("isic2017", tmp_path / "isic")))

    assert fold["ISIC_0000010"] == fold["ISIC_0000011"] != fold["ISIC_0000012"]


def test_held_out_cases_are_in_no_fold(tmp_path: Path, raw: Path) -> None:
    folder = convert("kvasir-seg", write_kvasir(tmp_path / "source", 12), hold_out=2)

    held_out = {path.stem for path in (folder / "labelsTs").iterdir()}
    trained = {path.stem for path in (folder / "labelsTr").iterdir()}
    assert (len(held_out), len(trained)) == (2, 10) and not held_out & trained
    assert all({*split["train"], *split["val"]} == trained for split in splits_of(folder))
    written = report(folder)
    assert written["warnings"] == [] and written["options"]["hold_out"] == 2


def test_held_out_cases_of_a_training_group_cause_a_warning(tmp_path: Path, raw: Path) -> None:
    ham10000(tmp_path / "ham")
    folder = convert("ham10000", tmp_path / "ham", hold_out=2)

    (warning,) = report(folder)["warnings"]
    for path in (folder / "labelsTs").iterdir():
        assert path.stem in warning


def test_a_group_that_is_held_out_completely_causes_no_warning(tmp_path: Path, raw: Path) -> None:
    cvc_clinicdb_tif(tmp_path / "source")
    folder = convert("cvc-clinicdb", tmp_path / "source", hold_out=3)

    # four of the six frames are of one sequence, and 612 is the only frame of its sequence
    assert {path.stem for path in (folder / "labelsTs").iterdir()} == {"10", "25", "612"}
    (warning,) = report(folder)["warnings"]
    assert "10" in warning and "25" in warning and "612" not in warning


def test_held_out_copies_of_training_images_cause_a_warning(tmp_path: Path, raw: Path, run) -> None:
    source = write_kvasir(tmp_path / "source", 3)
    images, masks = source / "Kvasir-SEG" / "Kvasir-SEG" / "images", source / "Kvasir-SEG" / "Kvasir-SEG" / "masks"
    for folder in (images, masks):
        (folder / "cju1_copy.jpg").write_bytes((folder / "cju1.jpg").read_bytes())

    result = run("kvasir-seg", "-i", source, "-d", 1, "--hold-out", 1)

    assert result.status == 0 and "holdout" in result.stderr and "cju1 = cju1_copy" in result.stderr


def test_hold_out_is_refused_with_the_official_split(tmp_path: Path, raw: Path, error_of) -> None:
    isic2017(tmp_path / "isic")
    message = error_of("isic2017", "-i", tmp_path / "isic", "-d", 1, "--official-split", "--hold-out", 1)
    assert "--official-split" in message and "--hold-out" in message


@pytest.mark.parametrize(
    ("frames", "fold"), [((1,), "all"), ((1, 2, 3, 4), "all"), ((1, 2, 3, 4, 5), "0"), ((1, 26), "0")]
)
def test_the_suggested_fold_is_one_that_nnunet_can_train(
    frames: tuple[int, ...], fold: str, tmp_path: Path, raw: Path, run
) -> None:
    # frames 1 to 25 are of one sequence, which no split may divide
    for i in frames:
        write_pair(tmp_path / "s" / "Original" / f"{i}.png", tmp_path / "s" / "Ground Truth" / f"{i}.png", i)

    result = run("cvc-clinicdb", "-i", tmp_path / "s", "-d", 1)

    assert f"nnUNetv2_train 1 2d {fold} -tr" in result.stdout
    if fold == "all":
        with pytest.raises(ValueError, match="n_splits"):
            generate_crossval_split([str(i) for i in frames])
    elif (raw / "Dataset001_CVCClinicDB" / "splits_final.json").exists():
        assert all(split["train"] and split["val"] for split in splits_of(raw / "Dataset001_CVCClinicDB"))
    else:
        assert len(generate_crossval_split([str(i) for i in frames])) == 5


def test_an_image_in_three_sets_causes_a_warning_per_pair(tmp_path: Path, raw: Path) -> None:
    isic2017(tmp_path)
    image = (tmp_path / "ISIC-2017_Validation_Data" / "ISIC_0000013.jpg").read_bytes()
    (tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000012.jpg").write_bytes(image)
    (tmp_path / "ISIC-2017_Test_v2_Data" / "ISIC_0000015.jpg").write_bytes(image)
    leaks = [w for w in convert_dataset(DATASETS["isic2017"], [tmp_path], 1, processes=1).warnings if "share" in w]
    assert len(leaks) == 3
    assert any("ISIC_0000012 = ISIC_0000015" in leak for leak in leaks)


def test_a_held_out_frame_does_not_leak_into_another_test_set(tmp_path: Path, raw: Path) -> None:
    for name, part, frames in (("image", "TrainDataset", (1, 26, 51)), ("images", "TestDataset/CVC-ClinicDB", (27,))):
        for i in frames:
            mask = "mask" if name == "image" else "masks"
            write_pair(tmp_path / part / name / f"{i}.png", tmp_path / part / mask / f"{i}.png", i)
    # the middle frame, the only training frame of its sequence, is held out
    conversion = convert_dataset(DATASETS["pranet"], [tmp_path], 1, processes=1, options=Options(hold_out=1))
    assert conversion.number_of_cases["imagesTs_holdout"] == 1
    assert [warning for warning in conversion.warnings if "sequence" in warning] == []

"""Every dataset is converted from the exact layout of its download, including stray files."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from support.convert_trees import (
    bkai_igh,
    cvc_300,
    cvc_clinicdb_both,
    cvc_clinicdb_tif,
    cvc_colondb,
    cvc_colondb_original,
    cvc_colondb_original_psc,
    etis,
    ham10000,
    isic2016,
    isic2017,
    isic2018,
    kvasir_seg,
    names,
    only,
    ph2,
    photograph,
    polypgen,
    pranet,
    pranet_images,
    pranet_mask,
    read,
    report,
    rgb,
    write,
    write_pair,
)
from support.images import centred_disc

CLINIC = ["1", "10", "2", "25", "26", "612"]
TEST_SETS = {
    f"Ts_{name}": [f"{name}_1"] for name in ("Kvasir", "CVC-ClinicDB", "CVC-ColonDB", "CVC-300", "ETIS-LaribPolypDB")
}
PRANET = {"Tr": ["1", "2", "612", "cju0", "cju1"], **TEST_SETS}

# dataset, function that writes its layout, expected cases
LAYOUTS = [
    ("kvasir-seg", kvasir_seg, {"Tr": ["cju0", "cju1", "cju2"]}),
    ("cvc-clinicdb", cvc_clinicdb_tif, {"Tr": CLINIC}),
    ("cvc-clinicdb", cvc_clinicdb_both, {"Tr": CLINIC}),
    ("cvc-colondb", cvc_colondb, {"Tr": ["1", "2", "380"]}),
    ("cvc-colondb", cvc_colondb_original, {"Tr": ["1", "10", "2"]}),
    ("cvc-colondb", cvc_colondb_original_psc, {"Tr": ["1", "10", "2"]}),
    ("cvc-300", cvc_300, {"Tr": ["149", "150", "151"]}),
    ("etis", etis, {"Tr": ["1", "13", "2"]}),
    ("polypgen", polypgen, {"Tr": [f"C{c}_100H000{i}" for c in range(1, 7) for i in (1, 2)]}),
    ("pranet", pranet, PRANET),
    ("pranet", pranet_images, PRANET),
    ("pranet", pranet_mask, PRANET),
    ("isic2016", isic2016, {"Tr": ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"], "Ts": ["ISIC_0000003"]}),
    (
        "isic2017",
        isic2017,
        {
            "Tr": ["ISIC_0000010", "ISIC_0000011", "ISIC_0000012"],
            "Ts_validation": ["ISIC_0000013", "ISIC_0000014"],
            "Ts_test": ["ISIC_0000015", "ISIC_0016072"],
        },
    ),
    (
        "isic2018",
        isic2018,
        {
            "Tr": ["ISIC_0000020", "ISIC_0000022", "ISIC_0016072"],
            "Ts_validation": ["ISIC_0000023", "ISIC_0000024"],
            "Ts_test": ["ISIC_0000025"],
        },
    ),
    ("ph2", ph2, {"Tr": ["IMD002", "IMD003", "IMD004"]}),
    ("ham10000", ham10000, {"Tr": [f"ISIC_{i:07}" for i in range(8)]}),
]


def upper(folder: Path) -> None:
    """Rename everything below a folder to upper case."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.name.startswith((".", "__")):
            path.rename(path.with_name(path.name.upper()))


@pytest.mark.parametrize("case", ["as distributed", "upper"])
@pytest.mark.parametrize(("name", "layout", "expected"), LAYOUTS, ids=[layout.__name__ for _, layout, _ in LAYOUTS])
def test_layout(name: str, layout, expected: dict[str, list[str]], case: str, tmp_path: Path, raw: Path) -> None:
    layout(tmp_path / "some" / "where")
    if case == "upper":
        upper(tmp_path / "some")

    folder = convert_dataset(DATASETS[name], [tmp_path], 1, processes=1).folder

    got = {path.name[6:]: sorted(p.stem for p in path.iterdir()) for path in folder.glob("labels*")}
    assert {s: sorted(map(str.casefold, c)) for s, c in got.items()} == {
        s: sorted(map(str.casefold, c)) for s, c in expected.items()
    }
    written = report(folder)
    for converted in written["cases"]:
        suffix = next(s for s in got if converted["identifier"] in got[s])
        image = read(folder / f"images{suffix}" / f"{converted['identifier']}_0000.png")
        label = read(folder / f"labels{suffix}" / f"{converted['identifier']}.png")
        np.testing.assert_array_equal(image, read(tmp_path.parent / converted["image"]["file"]))
        empty = "empty" in " ".join(written["warnings"]) and converted["identifier"].upper() == "C6_100H0002"
        np.testing.assert_array_equal(label, centred_disc(image.shape[:2], 0 if empty else 1))
    assert written["left_out"] == []


@pytest.mark.slow
def test_nnunet_accepts_every_dataset(tmp_path: Path, raw: Path, verify_with_nnunet) -> None:
    layouts = {name: layout for name, layout, _ in LAYOUTS} | {"bkai-igh": bkai_igh}
    for i, (name, layout) in enumerate(layouts.items(), start=1):
        layout(tmp_path / name)
        verify_with_nnunet(convert_dataset(DATASETS[name], [tmp_path / name], i, processes=1).folder)
    assert {*layouts, "folder"} == DATASETS.keys()


def test_bkai_igh_has_three_classes(tmp_path: Path, raw: Path) -> None:
    bkai_igh(tmp_path / "bkai")

    folder = convert_dataset(DATASETS["bkai-igh"], [tmp_path / "bkai"], 1, processes=1).folder

    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "neoplastic": 1, "non-neoplastic": 2}
    expected = np.zeros((64, 64))
    expected[8:24, 8:24] = 1
    expected[40:56, 30:50] = 2
    for i in range(3):
        label = read(folder / "labelsTr" / f"img{i}.png")
        # JPEG blurs the edges
        assert (label != expected).mean() < 0.01


def test_a_colour_without_a_class_is_reported(tmp_path: Path, raw: Path, error_of) -> None:
    bkai_igh(tmp_path / "bkai")
    mask = rgb(np.zeros((64, 64), np.uint8))
    mask[8:24, 8:24] = (0, 0, 255)
    mask[30:40, 30:40] = (255, 0, 0)
    write(tmp_path / "bkai" / "train_gt" / "train_gt" / "img1.jpeg", mask)

    message = error_of("bkai-igh", "-i", tmp_path / "bkai", "-d", 1)

    assert "img1.jpeg" in message and "not clearly binary" in message


def test_dark_grey_at_the_border_of_clinicdb_masks_is_background(tmp_path: Path, raw: Path) -> None:
    cvc_clinicdb_tif(tmp_path / "clinic")
    mask = centred_disc((24, 32))
    mask[:, 30:] = np.arange(48).reshape(24, 2) * 2 + 2
    write(tmp_path / "clinic" / "CVC-ClinicDB" / "Ground Truth" / "1.tif", mask)

    folder = convert_dataset(DATASETS["cvc-clinicdb"], [tmp_path / "clinic"], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "labelsTr" / "1.png"), centred_disc((24, 32), 1))


def test_folder_accepts_names_with_spaces_and_any_alphabet(tmp_path: Path, raw: Path, run) -> None:
    images, masks = tmp_path / "my images", tmp_path / "Masken für später"
    # macOS decomposes the accented letter in one of the names
    decomposed, composed = (unicodedata.normalize(form, "Läsion 7 (links)") for form in ("NFD", "NFC"))
    write_pair(images / f"img_{decomposed}.PNG", masks / f"{composed}-Maske.Png", 1)
    for i in range(2, 5):
        write_pair(images / f"IMG_病変{i}.jpg", masks / f"病変{i}-maske.png", i)

    result = run("folder", "-i", images, masks, "-d", 1, "--stems", "img_{}:{}-maske", "--name", "Mine", "-np", 1)

    assert result.status == 0, result.stderr
    labels = names(raw / "Dataset001_Mine" / "labelsTr")
    assert labels == ["Läsion_7__links_.png", "病変2.png", "病変3.png", "病変4.png"]


def test_names_may_contain_line_breaks(tmp_path: Path, raw: Path, run, error_of) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_pair(images / "a\nb.png", masks / "a\nb_mask.png", 1)
    write_pair(images / "c.png", masks / "c_mask.png", 2)
    result = run("folder", "-i", images, masks, "-d", 1, "--stems", "{}:{}_mask")
    assert result.status == 0, result.stderr
    assert names(raw / "Dataset001_Folder" / "labelsTr") == ["a_b.png", "c.png"]

    (masks / "a\nb_mask.png").unlink()
    message = error_of("folder", "-i", images, masks, "-d", 2, "--stems", "{}:{}_mask")
    assert "a\\nb.png has no mask" in message and message.count("\n") == 1


def test_masks_match_images_ignoring_case_but_ss_does_not_match_ß(tmp_path: Path, raw: Path, run, error_of) -> None:
    for seed, (image, mask) in enumerate([("Äpfel", "äPFEL"), ("b", "b")]):
        write_pair(tmp_path / "images" / f"{image}.png", tmp_path / "masks" / f"{mask}.png", seed)
    assert run("folder", "-i", tmp_path / "images", tmp_path / "masks", "-d", 1).status == 0

    write_pair(tmp_path / "images" / "Maße.png", tmp_path / "masks" / "masse.png", 3)
    message = error_of("folder", "-i", tmp_path / "images", tmp_path / "masks", "-d", 2)
    assert "Maße.png has no mask" in message and "masse.png has no image" in message


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--stems", "{}"], "--stems '{}'"),
        (["--stems", "a:{}"], "--stems 'a:{}'"),
        ([], "-i IMAGES MASKS"),
    ],
)
def test_usage_errors_of_folder_show_the_syntax(
    arguments: list[str], reason: str, tmp_path: Path, raw: Path, error_of
) -> None:
    assert reason in error_of("folder", "-i", tmp_path, "-d", 1, *arguments)


def test_stems_are_refused_for_other_datasets(tmp_path: Path, raw: Path, error_of) -> None:
    assert "--stems" in error_of("etis", "-i", tmp_path, "-d", 1, "--stems", "{}:{}")


def test_ham10000_requires_its_metadata_table(tmp_path: Path, raw: Path, error_of) -> None:
    ham10000(tmp_path / "ham")
    table = (tmp_path / "ham" / "HAM10000_metadata").rename(tmp_path / "HAM10000_metadata.csv")

    message = error_of("ham10000", "-i", tmp_path / "ham", "-d", 1)
    assert "HAM10000_metadata" in message
    # the file can also be a source by itself
    assert convert_dataset(DATASETS["ham10000"], [tmp_path / "ham", table], 1, processes=1).folder.is_dir()


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("CVC-ClinicDB", "cvc-clinicdb"), ("CVC-ClinicDB-tif", "cvc-clinicdb"), ("ETIS-LaribPolypDB", "etis")],
)
def test_real_samples(name: str, dataset: str, shared: Path, raw: Path) -> None:
    source = shared / "data" / name
    if not source.is_dir():
        pytest.skip(f"{source} does not exist")
    folder = convert_dataset(DATASETS[dataset], [source], 1, processes=1).folder

    for case in report(folder)["cases"]:
        label = read(folder / "labelsTr" / f"{case['identifier']}.png")
        np.testing.assert_array_equal(label, read(source.parent / case["mask"]["file"]) > 127)
        image = read(folder / "imagesTr" / f"{case['identifier']}_0000.png")
        np.testing.assert_array_equal(image, read(source.parent / case["image"]["file"]))


def test_files_of_operating_systems_are_skipped(kvasir: Path, raw: Path) -> None:
    images = only(kvasir, "images")
    for name in (
        *("cju0.jpg:Zone.Identifier", "Thumbs.db:encryptable", "desktop.ini", "~$notes.docx", "cju0.jpg~", "x.tmp"),
        *(".AppleDouble/cju0.jpg", ".cju0.jpg.A1b2C3", "@eaDir/cju0.jpg/SYNOPHOTO_THUMB_M.jpg"),
        *("$RECYCLE.BIN/S-1-5/$R1.jpg", "System Volume Information/x.dat", "__MacOSX/cju9.jpg"),
    ):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes((images / "cju0.jpg").read_bytes())
    # such files also exist beside the image folder
    shutil.copytree(images / "@eaDir", images.parent / "@eaDir" / "images")

    folder = convert_dataset(DATASETS["kvasir-seg"], [kvasir], 1, processes=1).folder

    assert names(folder / "labelsTr") == [f"cju{i}.png" for i in range(6)]
    assert report(folder)["left_out"] == []


def test_an_interrupted_download_is_not_skipped(kvasir: Path, raw: Path, error_of) -> None:
    (only(kvasir, "images") / "cju9.jpg.part").write_bytes(b"")
    assert "cju9.jpg.part" in error_of("kvasir-seg", "-i", kvasir, "-d", 1)


def test_lower_case_copies_of_ham10000_count_once(tmp_path: Path, raw: Path, error_of) -> None:
    ham10000(tmp_path)
    for part in (1, 2):
        shutil.copytree(tmp_path / f"HAM10000_images_part_{part}", tmp_path / f"ham10000_images_part_{part}")
    folder = convert_dataset(DATASETS["ham10000"], [tmp_path], 1, processes=1).folder
    assert len(names(folder / "labelsTr")) == 8

    # the same name with different content is an error
    write(tmp_path / "ham10000_images_part_1" / "ISIC_0000002.jpg", photograph((24, 32), 99))
    message = error_of("ham10000", "-i", tmp_path, "-d", 2)
    assert "ham10000_images_part_1/ISIC_0000002.jpg" in message and "same case identifier" in message


@pytest.mark.parametrize(
    ("one", "other"),
    [("c1", "C1"), ("Straße", "STRASSE"), ("caf\u00e9", "CAFE\u0301")],
    ids=["letters", "ß", "accents"],
)
def test_names_that_are_equal_on_some_file_systems_are_refused(
    one: str, other: str, tmp_path: Path, raw: Path, run, error_of
) -> None:
    for seed, name in enumerate((one, other, "b")):
        write_pair(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png", seed)
    source = ["-i", tmp_path / "images", tmp_path / "masks", "-d", 1]

    message = error_of("folder", *source)

    assert f"images/{one}.png" in message and f"images/{other}.png" in message
    # with --skip-bad, one of the two is kept
    assert run("folder", *source, "--skip-bad").status == 0
    assert len(names(raw / "Dataset001_Folder" / "labelsTr")) == 2


@pytest.mark.parametrize(("frames", "shared"), [((3, 611), 2), ((26, 611), 1), ((26, 50), 0)])
def test_pranet_warns_about_test_frames_of_training_sequences(
    frames: tuple[int, ...], shared: int, tmp_path: Path, raw: Path
) -> None:
    # the training set has frames of the first and the last sequence
    pranet(tmp_path)
    test = tmp_path / "TestDataset" / "CVC-ClinicDB"
    shutil.rmtree(test)
    for frame in frames:
        write_pair(test / "images" / f"{frame}.png", test / "masks" / f"{frame}.png", frame)

    warnings = convert_dataset(DATASETS["pranet"], [tmp_path], 1, processes=1).warnings

    assert [warning.partition(" of ")[0] for warning in warnings if "sequences" in warning] == [str(shared)] * (
        shared > 0
    )
    assert all(f"CVC-ClinicDB_{frame}" in str(warnings) for frame in frames[2 - shared :])


def test_shared_polyps_have_no_test_frame_of_a_training_sequence(shared: Path) -> None:
    found = DATASETS["pranet"].find_cases([shared / "data" / "Polyps-256"])
    assert DATASETS["pranet"].warnings({case.identifier: case.subset for case in found}) == []

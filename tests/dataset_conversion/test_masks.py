"""Masks: two levels are background and one class; more levels are refused and listed, unless --labels names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from support.convert_trees import names, photograph, read, report, rgb, write
from support.images import centred_disc, disc

SIZE = (48, 64)
OBJECT, TOOL = disc(24, 20, 12, SIZE), disc(20, 48, 9, SIZE)
RING = disc(24, 20, 15, SIZE) - OBJECT
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def drawn(values: dict[int, np.ndarray] | None = None, background: int = 0) -> np.ndarray:
    """Return a mask that has each key of `values` where its array is not 0, and `background` elsewhere."""
    mask = np.full(SIZE, background, np.uint8)
    for value, where in (values or {}).items():
        mask[where > 0] = value
    return mask


def painted(colours: dict[tuple[int, int, int], np.ndarray]) -> np.ndarray:
    mask = np.zeros((*SIZE, 3), np.uint8)
    for colour, where in colours.items():
        mask[where > 0] = colour
    return mask


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def spots(value: int) -> np.ndarray:
    """Return a mask of 0 and 255 in which three pixels have another value."""
    return drawn({255: OBJECT, value: np.eye(*SIZE) * (np.arange(SIZE[0]) < 3)[:, None]})


def reduced(resampling: Image.Resampling, size: tuple[int, int]) -> np.ndarray:
    """Return a binary mask after resizing, which softens its edges."""
    return np.asarray(Image.fromarray(disc(120, 100, 60, (240, 320), 255)).resize(size, resampling))


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., list[Path]]:
    """Return a function that writes masks and an image for each, and returns the folders for -i."""

    def make(*masks: np.ndarray | Image.Image, suffix: str = ".png", **options: object) -> list[Path]:
        for i, mask in enumerate(masks):
            mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            write(tmp_path / "images" / f"im{i}.png", photograph(mask.size[::-1], i))
            (tmp_path / "masks").mkdir(exist_ok=True)
            mask.save(tmp_path / "masks" / f"im{i}{suffix}", **options)
        return [tmp_path / "images", tmp_path / "masks"]

    return make


@pytest.fixture
def convert(source, raw: Path, run) -> Callable[..., Path]:
    """Return a function that writes and converts images with these masks, and returns the dataset's folder."""

    def call(*masks: np.ndarray | Image.Image, arguments: tuple[object, ...] = (), **options: object) -> Path:
        result = run("folder", "-i", *source(*masks, **options), "-d", 1, *arguments)
        assert result.status == 0, result.stderr
        return raw / "Dataset001_Folder"

    return call


def labels_of(folder: Path, case: str = "im0") -> np.ndarray:
    return read(folder / "labelsTr" / f"{case}.png")


# one class


@pytest.mark.parametrize(
    ("masks", "found"),
    [
        ([drawn({255: RING, 1: OBJECT})], ["1", "255"]),
        ([drawn({1: OBJECT, 2: TOOL})], ["1", "2"]),
        ([drawn({128: OBJECT, 255: TOOL})], ["128", "255"]),
        ([drawn({254: OBJECT, 255: TOOL})], ["254", "255"]),
        ([drawn({1: OBJECT}, background=255)] * 5 + [drawn({1: OBJECT, 0: TOOL}, background=255)], ["0", "1", "255"]),
        ([drawn({200: OBJECT}, background=100)], ["100", "200"]),
        ([drawn({2: OBJECT}, background=1)], ["1", "2"]),
        ([drawn({50: OBJECT, 100: RING, 150: TOOL})], ["50", "100", "150"]),
        ([drawn({128: RING, 255: OBJECT})], ["128", "255"]),
    ]
    + [([drawn({255: OBJECT}), spots(value)], [str(value), "255"]) for value in (1, 7, 128, 254)]
    + [
        ([painted({RED: OBJECT, GREEN: TOOL})], ["#ff0000", "#00ff00"]),
        ([painted({RED: OBJECT, WHITE: TOOL})], ["#ff0000", "#ffffff"]),
        ([painted({RED: OBJECT, (255, 20, 0): TOOL})], ["#ff0000", "#ff1400"]),
        ([palette(drawn({1: OBJECT, 2: TOOL}), (0, 0, 0), (128, 0, 0), (0, 128, 0))], ["#800000", "#008000"]),
        ([palette(drawn({1: OBJECT, 2: TOOL}), (0, 0, 0), RED, RED)], ["1", "2"]),
        ([palette(drawn({1: OBJECT}), (0, 0, 0), (0, 0, 0))], ["0", "1"]),
        # different levels in two masks
        ([drawn({1: OBJECT}), drawn({2: OBJECT})], ["1", "2"]),
        ([drawn({1: OBJECT}), drawn({255: OBJECT})], ["1", "255"]),
        ([drawn({1: OBJECT})] * 5 + [drawn({255: OBJECT})], ["1", "255"]),
        ([drawn({254: OBJECT}), drawn({255: OBJECT})], ["254", "255"]),
        ([painted({RED: OBJECT}), painted({GREEN: OBJECT})], ["#ff0000", "#00ff00"]),
        ([painted({RED: OBJECT}), drawn({255: OBJECT})], ["#ff0000", "#ffffff"]),
        ([drawn(background=1), drawn(background=2)], ["1", "2"]),
    ],
)
def test_more_than_two_levels_are_refused_by_value(masks, found: list[str], source, raw: Path, error_of) -> None:
    message = error_of("folder", "-i", *source(*masks), "-d", 1)

    assert "im" in message and "--labels" in message
    assert [value for value in found if value not in message] == []
    assert names(raw) == []


@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize(
    "mask",
    [
        drawn({255: RING, 1: OBJECT}),
        drawn({128: OBJECT, 255: TOOL}),
        painted({RED: OBJECT, GREEN: TOOL}),
        painted({RED: OBJECT, GREEN: RING}),
    ],
    ids=["ring", "grey", "colours", "ring in a colour"],
)
def test_a_jpeg_of_more_than_two_levels_is_refused(mask, quality: int, source, raw: Path, error_of) -> None:
    large = np.kron(mask, np.ones((4, 4, *[1] * (mask.ndim - 2)), np.uint8))

    message = error_of("folder", "-i", *source(large, suffix=".jpg", quality=quality), "-d", 1)

    assert "contains" in message


def test_more_than_two_levels_in_a_public_dataset_suggest_labels(source, raw: Path, error_of) -> None:
    images, _ = source(drawn({255: RING, 1: OBJECT}))
    assert "convert folder --labels" in error_of("kvasir-seg", "-i", images.parent, "-d", 1)


@pytest.mark.parametrize(
    "mask",
    [
        drawn({1: OBJECT}),
        drawn({255: OBJECT}),
        drawn({200: OBJECT}),
        drawn({255: OBJECT}) > 0,
        painted({RED: OBJECT}),
        np.dstack([rgb(drawn({255: OBJECT})), np.full(SIZE, 255, np.uint8)]),
        palette(drawn({1: OBJECT}), (0, 0, 0), (128, 0, 0)),
        palette(drawn({7: OBJECT}), *[(0, 0, 0)] * 7, (1, 1, 1)),
    ],
    ids=["1", "255", "200", "1 bit", "red", "opaque", "palette", "dark palette"],
)
def test_two_levels_are_background_and_one_class(mask, convert) -> None:
    np.testing.assert_array_equal(labels_of(convert(mask)), OBJECT)


@pytest.mark.parametrize("resampling", [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("size", [(100, 80), (160, 120), (256, 192), (400, 300)], ids=str)
def test_soft_edges_of_resized_masks_are_not_levels(resampling, size: tuple[int, int], convert) -> None:
    mask = reduced(resampling, size)
    np.testing.assert_array_equal(labels_of(convert(mask)), mask > 127)


@pytest.mark.parametrize("radius", [2, 4])
@pytest.mark.parametrize(
    ("size", "again"), [((352, 352), None), ((128, 128), None), ((256, 256), (512, 512)), ((224, 224), (1024, 1024))]
)
def test_soft_edges_of_small_objects_are_not_levels(radius: int, size, again, convert) -> None:
    """Small objects consist mostly of edges."""
    small = Image.fromarray(disc(120, 100, radius, (256, 256), 255))
    if again:
        small = small.resize(size, Image.Resampling.NEAREST)
    mask = np.asarray(small.resize(again or size, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(labels_of(convert(mask)), mask > 127)


def soft(radius: float, row: float, column: float, value: int) -> np.ndarray:
    rows, columns = np.ogrid[:256, :256]
    return value * np.clip(radius - np.hypot(rows - row, columns - column) + 0.5, 0, 1)


@pytest.mark.parametrize("value", [60, 128, 200])
@pytest.mark.parametrize(
    ("radius", "options"), [(2, {}), (3, {}), (3, {"suffix": ".jpg", "quality": 85})], ids=["2", "3", "3, JPEG"]
)
def test_a_small_third_level_is_refused(value: int, radius: float, options: dict, source, raw: Path, error_of) -> None:
    mask = np.maximum(soft(60, 100, 100, 255), soft(radius, 220, 220, value)).round().astype(np.uint8)
    assert "im0" in error_of("folder", "-i", *source(mask, **options), "-d", 1)


@pytest.mark.parametrize("options", [{}, {"suffix": ".jpg", "quality": 85}], ids=["PNG", "JPEG"])
def test_a_thin_third_level_is_refused(options: dict, source, raw: Path, error_of) -> None:
    mask = soft(60, 100, 100, 255).round().astype(np.uint8)
    mask[200:203, 20:200] = 128
    assert "im0" in error_of("folder", "-i", *source(mask, **options), "-d", 1)


def test_two_shades_of_a_soft_coloured_edge_are_not_levels(convert) -> None:
    mask = Image.fromarray(painted({RED: np.pad(np.ones((21, 31)), ((3, 24), (5, 28)))}))
    half = mask.resize((32, 24), Image.Resampling.BOX)
    assert len(half.getcolors()) > 2
    np.testing.assert_array_equal(labels_of(convert(half)), np.asarray(half)[..., 0] > 127)


def test_another_colour_between_two_is_a_level(source, raw: Path, error_of) -> None:
    thin = np.zeros(SIZE, np.uint8)
    thin[10:30, 19] = 1
    mask = painted({RED: np.pad(np.ones((20, 20)), ((10, 18), (20, 24))), (100, 0, 100): thin})
    assert "#640064" in error_of("folder", "-i", *source(mask), "-d", 1)


@pytest.mark.parametrize("quality", [15, 40, 62, 70, 85, 100])
@pytest.mark.parametrize("saved_again", [False, True], ids=["jpeg", "as png"])
def test_jpeg_noise_is_not_a_level(quality: int, saved_again: bool, tmp_path: Path, convert) -> None:
    mask = disc(120, 100, 60, (240, 320), 255)
    write_jpeg = tmp_path / "noisy.jpg"
    Image.fromarray(mask).save(write_jpeg, quality=quality)
    noisy = read(write_jpeg)
    assert len(np.unique(noisy)) > 2

    folder = convert(noisy) if saved_again else convert(mask, suffix=".jpg", quality=quality)

    assert (labels_of(folder) != (mask > 0)).mean() < 0.001


def test_a_black_jpeg_is_an_empty_mask(convert) -> None:
    folder = convert(drawn(), drawn({255: OBJECT}), suffix=".jpg", quality=70)
    assert not labels_of(folder).any() and labels_of(folder, "im1").any()


# several classes


def dataset_labels(folder: Path) -> dict[str, int]:
    return json.loads((folder / "dataset.json").read_text())["labels"]


@pytest.mark.parametrize(
    ("mask", "arguments", "expected"),
    [
        (
            drawn({7: OBJECT, 3: TOOL, 255: RING}),
            ["instrument=3", "polyp=7", "ignore=255"],
            {"background": 0, "instrument": 1, "polyp": 2, "ignore": 3},
        ),
        (
            palette(drawn({7: OBJECT, 3: TOOL, 255: RING}), *[(0, 0, 0)] * 256),
            ["ignore=255", "instrument=3", "polyp=7"],
            {"background": 0, "instrument": 1, "polyp": 2, "ignore": 3},
        ),
        (
            painted({RED: OBJECT, (255, 1, 0): TOOL, WHITE: RING}),
            ["instrument=#ff0100", "polyp=#FF0000", "ignore=#ffffff"],
            {"background": 0, "instrument": 1, "polyp": 2, "ignore": 3},
        ),
        (
            drawn({0: OBJECT, 3: TOOL, 128: RING}, background=255),
            ["background=255", "instrument=3", "polyp=0", "ignore=128"],
            {"background": 0, "instrument": 1, "polyp": 2, "ignore": 3},
        ),
    ],
    ids=["values", "palette", "colours", "background"],
)
def test_labels_follow_the_given_names(mask, arguments: list[str], expected: dict[str, int], convert) -> None:
    folder = convert(mask, arguments=("--labels", *arguments))

    np.testing.assert_array_equal(labels_of(folder), drawn({2: OBJECT, 1: TOOL, 3: RING}))
    assert dataset_labels(folder) == expected and list(dataset_labels(folder)) == list(expected)
    assert all(name in report(folder)["masks"]["rule"] for name in expected)


def test_one_bit_masks_have_the_values_0_and_1(convert) -> None:
    folder = convert(drawn({1: OBJECT}) > 0, arguments=("--labels", "polyp=1"))
    np.testing.assert_array_equal(labels_of(folder), OBJECT)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_labels_name_stored_tiff_values_for_every_photometric(photometric: str, tmp_path: Path, raw: Path, run) -> None:
    write(tmp_path / "images" / "im0.png", photograph(SIZE))
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "masks" / "im0.tif", OBJECT > 0, photometric=photometric)

    result = run("folder", "-i", tmp_path / "images", tmp_path / "masks", "-d", 1, "--labels", "polyp=1")

    assert result.status == 0, result.stderr
    np.testing.assert_array_equal(labels_of(raw / "Dataset001_Folder"), OBJECT)


@pytest.mark.parametrize("arguments", [(), ("--resize", 32), ("--resize", 100, "--keep-aspect")], ids=str)
def test_nnunet_accepts_labels(arguments: tuple[object, ...], convert, verify_with_nnunet) -> None:
    mask = drawn({1: OBJECT, 2: TOOL, 255: RING})
    folder = convert(mask, arguments=(*arguments, "--labels", "polyp=1", "instrument=2", "ignore=255"))

    verify_with_nnunet(folder)
    assert np.unique(labels_of(folder)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("mask", "suffix", "labels"),
    [
        (drawn({255: OBJECT}), ".jpg", ["polyp=255"]),
        (painted({RED: OBJECT, (0, 0, 255): TOOL}), ".jpg", ["polyp=#ff0000", "instrument=#0000ff"]),
    ],
    ids=["value", "colours"],
)
def test_labels_may_have_the_noise_of_a_jpeg(mask, suffix: str, labels: list[str], convert) -> None:
    folder = convert(mask, suffix=suffix, quality=95, subsampling=0, arguments=("--labels", *labels))
    expected = drawn({1: OBJECT, 2: TOOL} if mask.ndim == 3 else {1: OBJECT})
    assert (labels_of(folder) != expected).mean() < 0.01


@pytest.mark.parametrize(
    ("mask", "options", "labels", "found"),
    [
        (drawn({1: OBJECT, 2: TOOL, 255: RING}), {}, ["polyp=1", "ignore=255"], "2 ("),
        (spots(9), {}, ["polyp=255"], "9 (3 pixels)"),
        (drawn({255: OBJECT}, background=7), {}, ["polyp=255"], "7 ("),
        (drawn({1: OBJECT}), {}, ["background=255", "polyp=1"], "0 ("),
        (drawn({255: OBJECT}), {}, ["polyp=#ff0000"], "#ffffff ("),
        (painted({RED: OBJECT}), {}, ["polyp=255"], "#ff0000 ("),
        (palette(drawn({1: OBJECT, 2: TOOL}), (0, 0, 0), RED, RED), {}, ["polyp=1"], "2 ("),
        (painted({RED: OBJECT, GREEN: TOOL}), {"suffix": ".jpg"}, ["polyp=#ff0000"], "#00"),
        (drawn({255: OBJECT, 128: TOOL}), {"suffix": ".jpg"}, ["polyp=255"], "128 ("),
        (drawn({1: OBJECT, 2: TOOL}), {"suffix": ".jpg"}, ["polyp=1", "instrument=2"], "JPEG"),
        (drawn({255: OBJECT, 128: TOOL}), {"suffix": ".jpg"}, ["polyp=255", "instrument=128"], "JPEG"),
    ],
)
def test_a_value_without_a_label_is_a_problem(mask, options, labels, found, source, raw: Path, error_of) -> None:
    if options:
        mask = np.kron(mask, np.ones((4, 4, *[1] * (mask.ndim - 2)), np.uint8))

    message = error_of("folder", "-i", *source(mask, **options), "-d", 1, "--labels", *labels)

    assert f"im0{options.get('suffix', '.png')}" in message and found in message
    assert names(raw) == []


def test_a_label_in_no_mask_causes_a_warning(source, raw: Path, run) -> None:
    result = run("folder", "-i", *source(drawn({1: OBJECT}), drawn()), "-d", 1, "--labels", "polyp=1", "tool=3")

    assert result.status == 0
    assert "tool" in result.stderr and "1 case with empty masks:" in result.stderr


@pytest.mark.parametrize(
    "labels",
    [
        ["polyp"],
        ["=1"],
        [" =1"],
        ["polyp="],
        ["polyp=256"],
        ["polyp=-1"],
        ["polyp=1.0"],
        ["polyp=0x1"],
        ["polyp=٣"],
        ["polyp=#ff00"],
        ["polyp=#gg0000"],
        ["polyp=red"],
        ["polyp=1", "polyp=2"],
        ["polyp=1", "Polyp=2"],
        ["polyp=1", "tool=1"],
        ["polyp=1", "tool=01"],
        ["polyp=#ff0000", "tool=#FF0000"],
        ["polyp=1", "tool=#ff0000"],
        ["polyp=#ff0000", "ignore=255"],
        ["polyp=0"],
        ["polyp=#000000"],
        ["ignore=255"],
        ["background=0"],
        ["Background=255", "polyp=1"],
        ["IGNORE=255", "polyp=1"],
        ["po\nlyp=1"],
    ],
    ids=repr,
)
def test_malformed_labels_cause_one_clear_error(labels: list[str], tmp_path: Path, raw: Path, error_of) -> None:
    message = error_of("folder", "-i", tmp_path, tmp_path, "-d", 1, "--labels", *labels)
    assert "--labels" in message and len(message.splitlines()) == 1


def test_labels_are_refused_for_other_datasets(tmp_path: Path, raw: Path, error_of) -> None:
    assert "--labels" in error_of("etis", "-i", tmp_path, "-d", 1, "--labels", "polyp=1")


# several masks of an image


def write_busi(source: Path) -> Path:
    """Write a small BUSI: three folders, each with images and masks."""
    for seed, (folder, masks) in enumerate(
        {
            "benign (1)": [OBJECT, TOOL],
            "benign (100)": [OBJECT],
            "malignant (1)": [TOOL],
            "normal (1)": [0 * TOOL],
        }.items()
    ):
        place = source / folder.partition(" ")[0]
        write(place / f"{folder}.png", photograph(SIZE, seed))
        for i, mask in enumerate(masks):
            write(place / f"{folder}_mask{f'_{i}' if i else ''}.png", mask * 255)
    return source


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_busi_is_converted_with_all_its_masks(twice: bool, tmp_path: Path, raw: Path, run) -> None:
    source = write_busi(tmp_path / "Dataset_BUSI_with_GT")

    result = run("folder", "-i", *[source] * (1 + twice), "-d", 1, "--stems", "{}:{}_mask", "--name", "BUSI")

    assert result.status == 0, result.stderr
    folder = raw / "Dataset001_BUSI"
    labels = {"benign__1_": OBJECT | TOOL, "benign__100_": OBJECT, "malignant__1_": TOOL, "normal__1_": 0 * TOOL}
    assert names(folder / "labelsTr") == sorted(f"{name}.png" for name in labels)
    for name, label in labels.items():
        np.testing.assert_array_equal(labels_of(folder, name), label)
    cases = {case["identifier"]: case for case in report(folder)["cases"]}
    further = cases["benign__1_"]["further_masks"]
    assert [mask["file"] for mask in further] == ["Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png"]


def test_folders_with_equal_file_names_get_distinct_identifiers(tmp_path: Path, raw: Path, run) -> None:
    for seed, folder in enumerate(("benign", "malignant")):
        write(tmp_path / folder / "1.png", photograph(SIZE, seed))
        write(tmp_path / folder / "1_mask.png", OBJECT * 255)

    assert run("folder", "-i", tmp_path, "-d", 1, "--stems", "{}:{}_mask").status == 0
    assert names(raw / "Dataset001_Folder" / "labelsTr") == ["benign_1.png", "malignant_1.png"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "benign (1).png").unlink(), "benign (1)_mask.png has no image benign (1).*"),
        (lambda folder: (folder / "benign (100)_mask.png").unlink(), "has no mask benign (100)_mask.*"),
        (
            lambda folder: write(folder / "benign (1)_mask_1.png", centred_disc((24, 32))),
            "benign (1)_mask_1.png has 32",
        ),
        (lambda folder: (folder / "benign (1)_mask_1.png").write_bytes(b""), "benign (1)_mask_1.png is empty"),
        (lambda folder: write(folder / "benign (1)_mask_1.png", OBJECT + 2 * TOOL), "benign (1)_mask_1.png contains"),
        (lambda folder: write(folder / "benign (1)_mask_1.png", TOOL), "benign (1)_mask_1.png has no value above 1"),
        (lambda folder: write(folder / "benign (1)_mask_01.bmp", TOOL), "same case identifier"),
    ],
    ids=["no image", "no mask", "size", "unreadable", "labels", "level", "twice"],
)
def test_a_further_mask_is_checked_like_the_first(spoil, named: str, tmp_path: Path, raw: Path, error_of) -> None:
    spoil(write_busi(tmp_path) / "benign")

    assert named in error_of("folder", "-i", tmp_path, "-d", 1, "--stems", "{}:{}_mask")
    assert names(raw) == []


@pytest.mark.parametrize("lost", ["_mask", "_mask_1", "_mask_2"])
def test_a_lost_mask_among_numbered_ones_is_a_problem(lost: str, tmp_path: Path, raw: Path, run, error_of) -> None:
    folder = write_busi(tmp_path) / "benign"
    for number in (2, 3):
        write(folder / f"benign (1)_mask_{number}.png", OBJECT * 255)
    # the number of this image, 100, starts like that of image 1
    write(folder / "benign (100)_mask_1.png", OBJECT * 255)
    arguments = ("folder", "-i", tmp_path, "-d", 1, "--stems", "{}:{}_mask")
    assert run(*arguments, "--dry-run").status == 0
    (folder / f"benign (1){lost}.png").unlink()

    assert f"has no mask benign (1){lost}.*" in error_of(*arguments)
    assert run(*arguments, "--skip-bad").status == 0
    assert "benign__1_.png" not in names(raw / "Dataset001_Folder" / "labelsTr")


@pytest.mark.parametrize("first", [0, 1, 10**12])
def test_all_masks_may_be_numbered(first: int, tmp_path: Path, raw: Path, run) -> None:
    for seed, name in enumerate("ab"):
        write(tmp_path / f"{name}.png", photograph(SIZE, seed))
        for number, mask in enumerate((OBJECT, TOOL)[: seed + 1], first):
            write(tmp_path / f"{name}_mask_{number}.png", mask)

    assert run("folder", "-i", tmp_path, "-d", 1, "--stems", "{}:{}_mask").status == 0
    np.testing.assert_array_equal(labels_of(raw / "Dataset001_Folder", "b"), OBJECT | TOOL)


@pytest.mark.parametrize("overlap", [False, True])
def test_further_masks_may_have_other_classes_but_must_not_overlap(
    overlap: bool, tmp_path: Path, raw: Path, run
) -> None:
    write(tmp_path / "1.png", photograph(SIZE))
    write(tmp_path / "1_mask.png", OBJECT)
    write(tmp_path / "1_mask_1.png", 2 * (RING | OBJECT if overlap else RING))

    result = run("folder", "-i", tmp_path, "-d", 1, "--stems", "{}:{}_mask", "--labels", "polyp=1", "rim=2")

    assert result.status == int(overlap), result.stderr
    if overlap:
        assert "1_mask.png" in result.stderr and "1_mask_1.png" in result.stderr and names(raw) == []
    else:
        np.testing.assert_array_equal(labels_of(raw / "Dataset001_Folder", "1"), OBJECT + 2 * RING)


@pytest.mark.parametrize(
    ("image", "mask", "stems"),
    [("21_training", "21_manual1", "{}_training:{}_manual1"), ("fff9_01", "fff9_01_mask", "{}:{}_mask")],
    ids=["DRIVE", "Carvana"],
)
def test_documented_stems_work(image: str, mask: str, stems: str, tmp_path: Path, raw: Path, run) -> None:
    write(tmp_path / "images" / f"{image}.tif", photograph(SIZE))
    write(tmp_path / "masks" / f"{mask}.png", OBJECT * 255)

    assert run("folder", "-i", tmp_path / "images", tmp_path / "masks", "-d", 1, "--stems", stems).status == 0


def test_a_mask_named_like_an_image_is_not_a_further_mask(tmp_path: Path, raw: Path, error_of) -> None:
    """If masks are named like images, the mask of a missing image must not become a further mask of another image."""
    write(tmp_path / "images" / "a.png", photograph(SIZE))
    for name in ("a", "a_1"):
        write(tmp_path / "masks" / f"{name}.png", OBJECT * 255)

    assert "a_1.png has no image" in error_of("folder", "-i", tmp_path / "images", tmp_path / "masks", "-d", 1)

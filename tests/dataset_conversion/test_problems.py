"""One clear message names bad data, and nothing is left behind."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.utils.errors import UserError
from support.convert_trees import names, only, photograph, read, rgb, write
from support.images import centred_disc

KVASIR_SEG = DATASETS["kvasir-seg"]


# bad data: functions that spoil Kvasir-SEG's case cju1 and return the bad file


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
    # header and end are intact: only decoding reveals the damage
    data = image.read_bytes()
    image.write_bytes(data[:-300] + bytes(298) + data[-2:])
    return image


def _save_as(suffix: str, file: Path, pixels: np.ndarray, **options: object) -> Path:
    """Replace a file with one in another format."""
    file.unlink()
    write(file.with_suffix(suffix), pixels, **options)
    return file.with_suffix(suffix)


def _truncated_png(image: Path, mask: Path) -> Path:
    path = _save_as(".png", mask, read(mask))
    path.write_bytes(path.read_bytes()[:-30])
    return path


def _truncated_bmp(image: Path, mask: Path) -> Path:
    path = _save_as(".bmp", mask, read(mask))
    path.write_bytes(path.read_bytes()[:-200])
    return path


def _wrong_suffix(image: Path, mask: Path) -> Path:
    return image.rename(image.with_suffix(".png"))


def _alpha(image: Path, mask: Path) -> Path:
    pixels = read(image)
    return _save_as(".png", image, np.concatenate([pixels, pixels[..., :1]], axis=-1))


def _floating_point(image: Path, mask: Path) -> Path:
    return _save_as(".tif", image, read(image)[..., 0].astype(np.float32))


def _transparent_gif(image: Path, mask: Path) -> Path:
    path = _save_as(".gif", mask, read(mask)[..., 0])
    with Image.open(path) as gif:
        gif.save(path, transparency=0)
    return path


def _labels(image: Path, mask: Path) -> Path:
    return _save_as(".png", mask, (read(mask) > 127).astype(np.uint8))


def _other_size(image: Path, mask: Path) -> Path:
    write(mask, rgb(centred_disc((39, 25))))
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
    # a browser leaves such a file when a download is interrupted
    path = image.with_suffix(".jpg.crdownload")
    path.write_bytes(b"\xff\xd8\xff")
    return path


def _cmyk(image: Path, mask: Path) -> Path:
    Image.fromarray(read(image)).convert("CMYK").save(image)
    return image


def _turned_tiff(image: Path, mask: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _save_as(".tif", image, read(image), exif=exif)


def _huge(image: Path, mask: Path) -> Path:
    # the header claims 60000 × 60000 pixels, but there are none
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
        (_wrong_suffix, "is actually a .jpg file"),
        (_alpha, "has transparent pixels"),
        (_floating_point, "has floating-point samples"),
        (_transparent_gif, "has transparent pixels"),
        (_labels, "no value above 1, expected 0 and 255"),
        (_other_size, "has 25 × 39 pixels, but its image"),
        (_no_mask, "has no mask cju1.*"),
        (_no_image, "has no image cju1.*"),
        (_twice, "same case identifier as"),
        (_soft, "(not clearly binary)"),
        (_nothing, "is empty: it has no foreground (empty mask)"),
        (_image_as_mask, "is the same file as its image"),
        (_foreign, "is neither an image nor a document"),
        (_cmyk, "Pillow's mode CMYK"),
        (_turned_tiff, "is a TIFF with orientation 6"),
        (_huge, "claims more than 80 million pixels"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_bad_file_is_named_and_nothing_is_left_behind(
    spoil: Callable[[Path, Path], Path], reason: str, kvasir: Path, raw: Path, error_of
) -> None:
    path = spoil(only(kvasir, "images/cju1.jpg"), only(kvasir, "masks/cju1.jpg"))

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1, "-np", 1)

    assert f"error: {path} " in message
    assert reason in message
    assert len(message.splitlines()) == 1
    assert names(raw) == []


def test_a_file_that_fails_in_a_worker_process_is_named(kvasir: Path, raw: Path, error_of) -> None:
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
        write(tmp_path / "masks" / f"c{i:02}.png", centred_disc((8, 8)))
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


def test_duplicate_folders_are_named(kvasir: Path, raw: Path, error_of) -> None:
    shutil.copytree(only(kvasir, "images").parent, kvasir / "copy")

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1)

    assert str(kvasir / "copy" / "images") in message
    assert str(kvasir / "Kvasir-SEG" / "Kvasir-SEG" / "images") in message
    assert names(raw) == []


def test_many_duplicate_folders_are_counted(kvasir: Path, raw: Path, error_of) -> None:
    """Even if the source is a whole disk, the message does not fill the terminal."""
    for number in range(20):
        shutil.copytree(only(kvasir / "Kvasir-SEG", "images").parent, kvasir / f"copy{number}")

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1)

    assert "21" in message and message.count(str(kvasir)) == 5
    assert names(raw) == []

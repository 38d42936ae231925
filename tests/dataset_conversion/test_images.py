"""Images are read with their own bit depth, format and metadata."""

from __future__ import annotations

import os
import signal
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.dataset_conversion.images import BadFileError, SourceImage
from nnunet_mamba_mis.dataset_conversion.options import Options
from nnunet_mamba_mis.dataset_conversion.workers import workers
from support.convert_trees import names, only, photograph, read, report, rgb, write
from support.dying import square_or_die
from support.images import centred_disc

KVASIR_SEG = DATASETS["kvasir-seg"]
RGB = photograph((20, 24))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def write_deep(path: Path, samples: np.ndarray, **options: object) -> Path:
    """Write 16 bits per channel, as PNG or TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(samples.astype(np.uint16)))
    else:
        photometric = "rgb" if samples.ndim == 3 else "minisblack"
        tifffile.imwrite(path, samples.astype(np.uint16), photometric=photometric, **options)
    return path


def scaled(samples: np.ndarray, bits: int) -> np.ndarray:
    return np.floor(samples.astype(float) * 255 / (2**bits - 1) + 0.5).astype(np.uint8)


def replace(path: Path, suffix: str) -> Path:
    path.unlink()
    return path.with_suffix(suffix)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".tif", {}),
        (".tif", {"byteorder": ">", "compression": "lzw"}),
        (".tif", {"tile": (16, 16), "compression": "zlib", "predictor": True}),
        (".tif", {"planarconfig": "separate"}),
    ],
    ids=["png", "tiff", "big endian", "tiled", "planes"],
)
@pytest.mark.parametrize("kind", ["rgb", "grey", "opaque alpha"])
def test_16_bit_samples_keep_their_upper_bits(suffix: str, options: dict, kind: str, tmp_path: Path) -> None:
    samples = RGB.astype(np.uint16) * 16 + 5
    expected = scaled(samples, 12)
    if kind == "grey":
        samples, expected = samples[..., 0], rgb(expected[..., 0])
    elif kind == "opaque alpha":
        samples = np.dstack([samples, np.full(samples.shape[:2], 65535, np.uint16)])
    if options.get("planarconfig") and samples.ndim == 3:
        path = write_deep(tmp_path / f"i{suffix}", np.moveaxis(samples, -1, 0), **options)
    else:
        path = write_deep(tmp_path / f"i{suffix}", samples, **({} if "planarconfig" in options else options))

    image = SourceImage(path)

    assert image.bits == 12
    np.testing.assert_array_equal(image.rgb(12), expected)
    with pytest.raises(BadFileError):
        image.rgb(10)


@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (256, 10), (4095, 12), (4096, 14), (65535, 16)])
def test_all_images_are_scaled_from_the_smallest_sufficient_depth(largest: int, bits: int, kvasir, raw, run) -> None:
    paths = [replace(only(kvasir, f"images/cju{i}.jpg"), ".png") for i in range(2)]
    deep = [photograph((24 + i, 40 - i), i).astype(np.uint16) for i in range(2)]
    deep[1][0, 0] = largest
    for path, samples in zip(paths, deep, strict=True):
        write_deep(path, samples)

    result = run("kvasir-seg", "-i", kvasir, "-d", 1)

    assert result.status == 0 and f"--bits {bits}" in result.stderr
    folder = raw / "Dataset001_KvasirSEG"
    for i, samples in enumerate(deep):
        np.testing.assert_array_equal(read(folder / f"imagesTr/cju{i}_0000.png"), scaled(samples, bits))
    # 8-bit images in the same source are unchanged
    np.testing.assert_array_equal(read(folder / "imagesTr/cju2_0000.png"), read(only(kvasir, "images/cju2.jpg")))
    written = report(folder)
    assert written["images"]["bits"] == bits and written["images"]["number_with_16_bits"] == 2
    assert written["cases"][1]["done"] == ["16-bit RGB to RGB", f"{bits} bits scaled to 8"]


@pytest.mark.parametrize(
    ("dtype", "photometric", "planar"),
    [
        (np.uint8, "rgb", "contig"),
        (np.uint16, "rgb", "contig"),
        (np.uint16, "rgb", "separate"),
        (np.uint16, "minisblack", "contig"),
    ],
)
@pytest.mark.parametrize(("extra", "hides"), [("unspecified", False), ("assocalpha", True), ("unassalpha", True)])
def test_an_extra_tiff_channel_is_alpha_only_if_declared(
    dtype: type, photometric: str, planar: str, extra: str, hides: bool, tmp_path: Path
) -> None:
    colours = RGB if photometric == "rgb" else RGB[..., :1]
    samples = np.concatenate([colours, RGB[..., :1]], axis=2).astype(dtype)
    pixels = np.moveaxis(samples, -1, 0) if planar == "separate" else samples
    path = tmp_path / "i.tif"
    tifffile.imwrite(path, pixels, photometric=photometric, planarconfig=planar, extrasamples=[extra])

    if hides:
        with pytest.raises(BadFileError, match="transparent"):
            SourceImage(path).rgb(8)
    else:
        np.testing.assert_array_equal(SourceImage(path).rgb(8), np.broadcast_to(colours, RGB.shape))


def test_a_source_without_16_bit_images_is_reported_as_unchanged(kvasir: Path, raw: Path) -> None:
    written = report(convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder)
    assert written["images"] == {"rule": "8 bits per channel, unchanged", "bits": None, "number_with_16_bits": 0}
    assert written["warnings"] == []


@pytest.mark.parametrize("factor", [1, 255, 257 * 255], ids=["0 and 1", "0 and 255", "0 and 65535"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_mask_keeps_its_values(factor: int, suffix: str, channels: int, tmp_path: Path) -> None:
    mask = centred_disc((20, 24), 1)
    deep = (rgb(mask) if channels == 3 else mask).astype(np.uint16) * factor

    values = np.asarray(SourceImage(write_deep(tmp_path / f"m{suffix}", deep)).mask())

    np.testing.assert_array_equal(values.reshape(20, 24, -1)[..., 0], mask * (factor if factor < 256 else 255))


def test_a_16_bit_mask_with_other_values_is_refused_with_these_values(kvasir: Path, raw: Path, error_of) -> None:
    path = replace(only(kvasir, "masks/cju1.jpg"), ".png")
    write_deep(path, centred_disc((25, 39), 1).astype(np.uint16) * 4095)

    message = error_of("kvasir-seg", "-i", kvasir, "-d", 1)

    assert str(path) in message and "0, 4095" in message


def palette_of_8_bits(path: Path) -> None:
    tifffile.imwrite(path, RGB[..., 0], photometric="palette", colormap=np.arange(768).reshape(3, 256) % 256)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("float.tif", lambda path: tifffile.imwrite(path, RGB.astype(np.float32), photometric="rgb")),
        ("half.tif", lambda path: tifffile.imwrite(path, RGB.astype(np.float16), photometric="rgb")),
        ("32.tif", lambda path: tifffile.imwrite(path, RGB.astype(np.uint32), photometric="rgb")),
        ("signed16.tif", lambda path: tifffile.imwrite(path, RGB.astype(np.int16), photometric="rgb")),
        ("signed8.tif", lambda path: tifffile.imwrite(path, RGB.astype(np.int8)[..., 0])),
        ("white0.tif", lambda path: tifffile.imwrite(path, RGB.astype(np.uint16)[..., 0], photometric="miniswhite")),
        ("cmyk.tif", lambda path: Image.fromarray(RGB).convert("CMYK").save(path)),
        ("lab.tif", lambda path: Image.new("LAB", (8, 8)).save(path)),
        ("palette.tif", palette_of_8_bits),
        ("12.tif", lambda path: tifffile.imwrite(path, RGB[..., 0].astype(np.uint16), bitspersample=12)),
        ("12.jpg", lambda path: path.write_bytes(imagecodecs.jpeg_encode(RGB.astype(np.uint16), bitspersample=12))),
        ("alpha.png", lambda path: write_deep(path, np.dstack([RGB, RGB[..., :1]]))),
        ("pages.tif", lambda path: tifffile.imwrite(path, np.stack([RGB, RGB]), photometric="rgb")),
        ("frames.gif", lambda path: animated(path)),
        ("frames.png", lambda path: animated(path)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_samples_and_multiple_images_are_refused(name: str, make, tmp_path: Path) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(BadFileError) as error:
        SourceImage(path).rgb(16)
    assert "damaged" not in str(error.value)


def animated(path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    first.save(path, save_all=True, append_images=[second])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_low_bit_depths_are_scaled_to_8_bits_and_palettes_applied(bits: int, tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2**bits
    colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(8, -1), axis=1)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    for kind, palette in ((0, b""), (3, chunk(b"PLTE", colours.tobytes()))):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, kind, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        (tmp_path / f"{kind}.png").write_bytes(data)

    np.testing.assert_array_equal(SourceImage(tmp_path / "0.png").mask(), values * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(SourceImage(tmp_path / "3.png").rgb(0), colours[values])


@pytest.mark.parametrize("where", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iCCP", b"profile\0\7nothing"),
        chunk(b"tEXt", b"Comment\0text")[:-1] + b"?",
        chunk(b"pHYs", b"\0"),
    ],
    ids=["zTXt", "iTXt", "iCCP", "unknown iCCP", "checksum", "short"],
)
@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_damaged_metadata_does_not_affect_intact_pixels(
    where: str, metadata: bytes, deep: bool, tmp_path: Path
) -> None:
    path = write_deep(tmp_path / "i.png", RGB.astype(np.uint16) * 257)
    if not deep:
        write(path, RGB)
    data = path.read_bytes()
    at = data.index(b"IDAT") - 4 if where == "before the pixels" else data.index(b"IEND") - 4
    path.write_bytes(data[:at] + metadata + data[at:])

    np.testing.assert_array_equal(SourceImage(path).rgb(16), RGB)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_wrong_checksum_of_pixels_palette_or_transparency_is_damage(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "i.png"
    Image.fromarray(RGB).quantize(9).save(path, transparency=200)
    data = path.read_bytes()
    at = data.index(name)
    (length,) = struct.unpack(">I", data[at - 4 : at])
    path.write_bytes(data[: at + 4 + length] + b"\0\0\0\0" + data[at + 8 + length :])

    with pytest.raises(BadFileError, match="damaged"):
        SourceImage(path).rgb(0)


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_undefined_orientation_is_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / f"i{suffix}", RGB, exif=exif)

    image = SourceImage(tmp_path / f"i{suffix}")

    assert image.orientation == 1
    np.testing.assert_array_equal(image.rgb(0), read(tmp_path / f"i{suffix}"))


def test_gif_masks_are_read(kvasir: Path, raw: Path) -> None:
    for path in list(only(kvasir, "masks").iterdir()):
        Image.fromarray(centred_disc(read(path).shape[:2])).save(replace(path, ".gif"))

    folder = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1).folder

    np.testing.assert_array_equal(read(folder / "labelsTr" / "cju0.png"), centred_disc((24, 40), 1))


def packed(values: np.ndarray, bits: int) -> bytes:
    """Pack values of a few bits into bytes; each row must fill whole bytes."""
    shift = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (values.reshape(-1, 8 // bits) << shift).sum(axis=1, dtype=np.uint8).tobytes()


def write_small_png(path: Path, values: np.ndarray, bits: int) -> None:
    height, width = values.shape
    rows = b"".join(b"\0" + packed(row, bits) for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def write_small_tiff(path: Path, values: np.ndarray, bits: int, photometric: int) -> None:
    height, width = values.shape
    pixels = packed(values, bits)
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    entries[279] = len(pixels)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
        + pixels
        + struct.pack("<H", len(entries))
        + directory
        + bytes(4)
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["png", "black is zero", "white is zero"])
def test_by_value_returns_the_stored_values(kind: str, bits: int, tmp_path: Path) -> None:
    values = (np.arange(16 * 24, dtype=np.int64).reshape(16, 24) % 2**bits).astype(np.uint8)
    path = tmp_path / f"m.{'png' if kind == 'png' else 'tif'}"
    if kind == "png":
        write_small_png(path, values, bits)
    else:
        write_small_tiff(path, values, bits, photometric=int(kind == "black is zero"))

    np.testing.assert_array_equal(np.asarray(SourceImage(path).mask(by_value=True)), values)


def second_directory_without_width(path: Path) -> None:
    tifffile.imwrite(path, np.stack([RGB, RGB]), photometric="rgb")
    data = bytearray(path.read_bytes())
    at = data.rindex(struct.pack("<HH", 256, 4))
    data[at : at + 2] = struct.pack("<H", 65000)
    path.write_bytes(data)


def odd_gif(path: Path) -> None:
    # only the header
    path.write_bytes(b"GIF89a\x05\0\x05\0\x80\0\0")


@pytest.mark.parametrize(
    ("suffix", "make"), [(".tif", second_directory_without_width), (".gif", odd_gif)], ids=["tiff", "gif"]
)
def test_a_decoder_error_does_not_stop_the_other_files(suffix: str, make, kvasir: Path, raw: Path) -> None:
    make(replace(only(kvasir, "images/cju1.jpg"), suffix))

    result = convert_dataset(KVASIR_SEG, [kvasir], 1, processes=1, options=Options(skip_bad=True))

    assert result.number_of_cases == {"imagesTr": 5}
    assert len(result.left_out) == 1 and f"cju1{suffix}" in result.left_out[0]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_folder_whose_name_is_not_utf_8_is_read(kvasir: Path, tmp_path: Path, raw: Path) -> None:
    source = tmp_path / os.fsdecode(b"donn\xe9es")
    kvasir.rename(source)

    folder = convert_dataset(KVASIR_SEG, [source], 1, processes=1).folder

    assert len(names(folder / "imagesTr")) == 6


@pytest.mark.slow
def test_a_job_that_kills_its_process_does_not_affect_other_jobs() -> None:
    jobs = [*range(5), -signal.SIGKILL, *range(6, 20), -signal.SIGSEGV]
    with workers(2) as pool:
        results = list(pool.map(square_or_die, jobs, "", lambda job: f"killed by {job}"))

    assert results == [job**2 if job >= 0 else f"killed by {job}" for job in jobs]

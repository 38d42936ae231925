"""Images are prepared for display, and names are drawn in figures."""

from __future__ import annotations

import warnings

import matplotlib as mpl
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from matplotlib.figure import Figure
from PIL import Image

from nnunet_mamba_mis.utils.figures import for_figure, plain_figures, save_figure, try_to_draw
from nnunet_mamba_mis.utils.overlays import for_display, read_natural_image, tile

RGB = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def write(path, image: np.ndarray) -> None:
    """Write an image with a library that keeps its bit depth."""
    if path.suffix == ".tif":
        tifffile.imwrite(path, image, photometric="rgb" if image.ndim == 3 else "minisblack")
    elif image.dtype == np.uint8:
        Image.fromarray(image).save(path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(image, isVector=image.ndim == 3), str(path))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("rgb.png", RGB),
        ("rgba.png", np.dstack([RGB, np.full_like(GREY, 9)])),
        ("grey.png", GREY // 9),
        ("rgb.tif", RGB),
        ("grey.bmp", GREY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_8_bit_images_are_shown_unchanged(tmp_path, name, image):
    write(tmp_path / name, image)
    shown = for_display(read_natural_image(tmp_path / name))
    expected = image[..., :3] if image.ndim == 3 else image
    assert np.array_equal(shown[..., 0] if shown.ndim > expected.ndim else shown, expected)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("rgb.png", RGB.astype(np.uint16) * 2),
        ("rgb.tif", RGB.astype(np.uint16) * 16),
        ("grey.png", GREY.astype(np.uint16) * 2),
        ("float.tif", np.where(GREY == 7, np.nan, GREY / np.float32(1000))),
        ("signed.tif", GREY.astype(np.int32) * 1000 - 90000),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_depths_are_shown_between_their_own_percentiles(tmp_path, name, image):
    write(tmp_path / name, image)
    shown = for_display(read_natural_image(tmp_path / name))
    assert shown.dtype == np.uint8 and shown.shape == image.shape
    reference = RGB if image.ndim == 3 else GREY
    difference = np.abs(shown.astype(int) - reference)[np.isfinite(image)]
    assert difference.max() < 6


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan, np.inf])
def test_constant_images_can_be_shown(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(np.unique(for_display(np.full((4, 5), value)))) == 1


def test_very_long_image_has_a_tile():
    picture, scale = tile(np.zeros((1, 5000), np.uint8))
    assert picture.shape == (1, 420) and scale == pytest.approx(0.084)


def test_names_are_drawn_literally_whatever_the_users_settings(tmp_path):
    names = ["a$x_{$", "患者 😀", "tab\t\x1b", "x" * 500]
    with mpl.rc_context({"text.usetex": True}), warnings.catch_warnings(), plain_figures():
        warnings.simplefilter("error")
        figure = Figure()
        for name in names:
            figure.text(0, 0, for_figure(name))
        save_figure(figure, tmp_path / "a.png", svg=True)
    assert "$x_" in (tmp_path / "a.svg").read_text() and (tmp_path / "a.png").is_file()
    assert for_figure("患者_1") == "\\u60a3\\u8005_1"
    assert max(map(len, for_figure("x" * 500, 20).splitlines())) <= 20 and len(for_figure("x" * 500, 20)) < 90


def test_failing_figure_prints_one_line_and_leaves_no_file(tmp_path, capsys):
    def fail(file) -> None:
        raise IndexError("three\nlines\x1b[0m")

    (tmp_path / "a.png").write_bytes(b"of an earlier run")
    (line,) = try_to_draw(fail, tmp_path / "a.png")
    assert "a.png" in line and "\n" not in line and "\x1b" not in line
    assert line in capsys.readouterr().err and not (tmp_path / "a.png").exists()

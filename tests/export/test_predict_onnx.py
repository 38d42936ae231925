"""`predict_onnx.py`, the script that `mamba_mis export` writes, compared with nnU-Net's own reader."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image

pytest.importorskip("onnxruntime")
from nnunet_mamba_mis.export import predict_onnx

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 4)).astype(np.uint8)
IMAGES = {
    "grey": lambda: Image.fromarray(PIXELS[..., 0]),
    "1 bit": lambda: Image.fromarray(PIXELS[..., 0] > 127),
    "16 bits": lambda: Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200),
    "RGB": lambda: Image.fromarray(PIXELS[..., :3]),
    "RGBA": lambda: Image.fromarray(PIXELS),
    "palette": lambda: Image.fromarray(PIXELS[..., :3]).quantize(16),
    "palette of greys": lambda: Image.fromarray(PIXELS[..., 0]).convert("P"),
}


def described(channels: int) -> dict:
    return {"normalization": [{}] * channels, "channel_names": {}}


@pytest.mark.feature("Export", "numpy and onnxruntime alone segment as `nnUNetv2_predict` does")
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_read_as_by_nnunet(name, tmp_path):
    file = tmp_path / "image.png"
    IMAGES[name]().save(file)
    expected = NaturalImage2DIO().read_images([str(file)])[0][:, 0]
    np.testing.assert_array_equal(predict_onnx.read_image(str(file), described(len(expected))), expected)
    # nnU-Net would fail later, in its network or normalization
    with pytest.raises(SystemExit, match=f"has {len(expected)} channels"):
        predict_onnx.read_image(str(file), described(len(expected) + 1))


def test_black_and_flat_images_stay_finite():
    black = np.zeros((1, 5, 6), np.float32)
    assert predict_onnx.nonzero_region(black) == (slice(0, 5), slice(0, 6))
    how = {"scheme": "ZScoreNormalization", "only_inside_nonzero": False}
    for channel in (black[0], black[0] + 7):
        np.testing.assert_array_equal(predict_onnx.normalize(channel, how), 0)


def test_grey_with_alpha_is_refused(tmp_path):
    """nnU-Net does not read such images either."""
    file = tmp_path / "image.png"
    Image.fromarray(PIXELS[..., 0]).convert("LA").save(file)
    with pytest.raises(SystemExit, match=r"image\.png has"):
        predict_onnx.read_image(str(file), described(1))

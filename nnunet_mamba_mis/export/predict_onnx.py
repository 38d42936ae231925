"""Segment an image with the network in this folder: python predict_onnx.py IMAGE SEGMENTATION.

Needs only numpy, Pillow and onnxruntime. For images with the pixel size of the training images, such as photographs, it
does the same as `nnUNetv2_predict --disable_tta`: crop, normalization, and a sliding window with Gaussian weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    """Read an image, predict, and write the segmentation."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    image_file, output_file = sys.argv[1:]
    folder = Path(__file__).parent
    about = json.loads((folder / "network.json").read_text())
    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    image = read_image(image_file, about)
    rows, columns = inside = nonzero_region(image)
    crop = np.stack([normalize(*pair) for pair in zip(image[:, rows, columns], about["normalization"], strict=True)])
    logits = predict(session, crop, about["patch_size"])
    segmentation = np.zeros(image.shape[1:], np.uint8)
    if about["regions_class_order"] is None:
        segmentation[inside] = logits.argmax(0)
    else:
        for region, label in zip(logits, about["regions_class_order"], strict=True):
            segmentation[inside][region > 0] = label
    Image.fromarray(segmentation).save(output_file)


def read_image(file: str, about: dict[str, Any]) -> np.ndarray:
    """Read (channels, H, W) as nnU-Net's NaturalImage2DIO does: palettes become RGB, alpha a fourth channel."""
    picture: Image.Image = Image.open(file)
    if picture.mode == "P":
        picture = picture.convert("RGB")
    pixels = np.asarray(picture, dtype=np.float32)
    image = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    expected = len(about["normalization"])
    if len(image) != expected:
        sys.exit(
            f"{file} has {len(image)} channels (Pillow mode {picture.mode}), but the network was trained with "
            f"{expected}: {about['channel_names']}. Convert the image"
        )
    return image


def nonzero_region(image: np.ndarray) -> tuple[slice, slice]:
    """Return the region of the image inside black borders, or the whole image if it is entirely black."""
    rows, columns = (np.flatnonzero((image != 0).any((0, axis))) for axis in (2, 1))
    if not len(rows):
        return slice(0, image.shape[1]), slice(0, image.shape[2])
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def normalize(channel: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """Normalize a channel by nnU-Net's scheme."""
    if how["scheme"] == "RGBTo01Normalization":
        return channel / 255
    if how["scheme"] == "ZScoreNormalization" and not how["only_inside_nonzero"]:
        return (channel - channel.mean()) / max(channel.std(), 1e-8)
    sys.exit(f"predict_onnx.py does not implement this normalization, so add it to normalize(): {how}")


def predict(session: onnxruntime.InferenceSession, image: np.ndarray, patch_size: list[int]) -> np.ndarray:
    """Return logits (classes, H, W) of a normalized image."""
    patch = np.array(patch_size)
    # pad on all sides to at least the size of a patch
    missing = np.maximum(patch - image.shape[1:], 0)
    before = missing // 2
    padded = np.pad(image, [(0, 0), *zip(before, missing - before, strict=True)]).astype(np.float32)
    weight = np.outer(*map(gaussian, patch))
    total, weights = np.zeros((1, *padded.shape[1:])), np.zeros(padded.shape[1:])
    for top in starts(padded.shape[1], patch[0]):
        for left in starts(padded.shape[2], patch[1]):
            rows, columns = slice(top, top + patch[0]), slice(left, left + patch[1])
            (logits,) = session.run(["logits"], {"image": padded[None, :, rows, columns]})
            if len(total) != logits.shape[1]:
                total = np.zeros((logits.shape[1], *padded.shape[1:]))
            total[:, rows, columns] += weight * logits[0]
            weights[rows, columns] += weight
    return (total / weights)[:, before[0] :, before[1] :][:, : image.shape[1], : image.shape[2]]


def starts(size: int, window: int) -> np.ndarray:
    """Return the positions of windows that cover an axis, at most half a window apart."""
    count = int(np.ceil((size - window) / (window / 2))) + 1
    return np.round(np.linspace(0, size - window, count)).astype(int)


def gaussian(size: int) -> np.ndarray:
    """Return the weight of each position in a window, 1 at its centre."""
    return np.exp(-0.5 * ((np.arange(size) - size // 2) / (size / 8)) ** 2)


if __name__ == "__main__":
    main()

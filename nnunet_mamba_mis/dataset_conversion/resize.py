"""Bring image and label map to a square of a given side, as papers do."""

from __future__ import annotations

from PIL import Image


def resized(image: Image.Image, side: int, keep_aspect: bool, is_label: bool) -> Image.Image:
    """Return an image of side × side pixels.

    Labels take the nearest pixel; an image averages over areas where it shrinks and is bicubic where it grows.

    Args:
        image: An image or a label map.
        side: In pixels.
        keep_aspect: Pad with black (labels: background) at both ends of the shorter side, rather than stretch.
        is_label: It is a label map.
    """
    width, height = side, side
    if keep_aspect:
        scale = side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
    # to one and the same grid of pixels in both
    shrinks = width * height < image.width * image.height
    resampling = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    small = image.resize((width, height), Image.Resampling.NEAREST if is_label else resampling)
    if small.size == (side, side):
        return small
    padded = Image.new(image.mode, (side, side))
    padded.paste(small, ((side - width) // 2, (side - height) // 2))
    return padded

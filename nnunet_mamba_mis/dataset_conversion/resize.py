"""Resize images and label maps to a square, as papers do."""

from __future__ import annotations

from PIL import Image


def resized(image: Image.Image, side: int, keep_aspect: bool, is_label: bool) -> Image.Image:
    """Return an image of side × side pixels.

    Labels use nearest-neighbour sampling. Images use area averages to shrink and bicubic interpolation to grow.

    Args:
        image: An image or a label map.
        side: Side of the square in pixels.
        keep_aspect: Pad both ends of the shorter side with black (labels: background) instead of stretching.
        is_label: Whether this is a label map.
    """
    width, height = side, side
    if keep_aspect:
        scale = side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
    # image and label map are resized to the same pixel grid
    shrinks = width * height < image.width * image.height
    resampling = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    small = image.resize((width, height), Image.Resampling.NEAREST if is_label else resampling)
    if small.size == (side, side):
        return small
    padded = Image.new(image.mode, (side, side))
    padded.paste(small, ((side - width) // 2, (side - height) // 2))
    return padded

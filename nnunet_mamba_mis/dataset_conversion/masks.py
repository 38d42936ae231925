"""Turn masks as drawn into label maps, and tell those that are no clear masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from PIL import Image, ImageChops

from nnunet_mamba_mis.dataset_conversion.dataset import BinaryMask, ColourMask
from nnunet_mamba_mis.dataset_conversion.problems import EMPTY_MASK, NOT_BINARY

# A mask is unclear if more of what is drawn than this lies between dark and bright (edges of masks that were resized
# do, a few percent) and it is no speck: more of the whole than this.
_UNCLEAR_OF_DRAWN = 0.1
_UNCLEAR_OF_ALL = 0.0005

# a channel further off its class's colour than this is neither that colour nor compression noise
_UNCLEAR_DISTANCE = 96

_BINS = 8


@dataclass(frozen=True)
class MaskFacts:
    """What a mask holds.

    Args:
        histogram: How many pixels have each of 256 values: grey values, or distances from the nearest class's colour.
        drawn: Number of pixels of a class; for grey masks, of those above 0.
    """

    histogram: np.ndarray
    drawn: int

    @property
    def brightest(self) -> int:
        """The largest value."""
        return int(np.flatnonzero(self.histogram)[-1])


def measure(rule: BinaryMask | ColourMask, mask: Image.Image) -> MaskFacts:
    """Return what a mask holds."""
    if isinstance(rule, ColourMask):
        labels, distance = _nearest(rule, mask)
        return MaskFacts(np.bincount(distance.ravel(), minlength=256), int(np.count_nonzero(labels)))
    histogram = np.array(_grey(mask).histogram())
    return MaskFacts(histogram, int(histogram[1:].sum()))


def full_range(rule: BinaryMask | ColourMask, facts: list[MaskFacts]) -> int:
    """Return the brightest value of all masks of a source: 255, or 1 if they are label maps."""
    return 255 if isinstance(rule, ColourMask) else max((mask.brightest for mask in facts), default=255) or 255


def mask_problem(rule: BinaryMask | ColourMask, facts: MaskFacts, brightest: int) -> tuple[str, str] | None:
    """Return kind and reason if a mask is empty or not clear.

    Args:
        rule: Of the dataset.
        facts: Of the mask.
        brightest: The `full_range` of the source.
    """
    if facts.drawn == 0:
        return EMPTY_MASK, "is empty: nothing is drawn in it"
    if isinstance(rule, ColourMask):
        unclear, drawn = facts.histogram[_UNCLEAR_DISTANCE:].sum(), facts.drawn
    else:
        if not facts.histogram[brightest // 2 + 1 :].any():
            return (
                NOT_BINARY,
                f"has no value above {facts.brightest}, expected 0 and {brightest} ({_text(facts.histogram)})",
            )
        dark = rule.dark * brightest // 255 + 1
        bright = -(-rule.bright * brightest // 255)
        unclear, drawn = facts.histogram[dark:bright].sum(), facts.histogram[dark:].sum()
    if unclear > _UNCLEAR_OF_DRAWN * drawn and unclear > _UNCLEAR_OF_ALL * facts.histogram.sum():
        what = "distances from the nearest colour" if isinstance(rule, ColourMask) else "values"
        return NOT_BINARY, f"is not clearly a mask: {unclear} pixels lie in between ({what} {_text(facts.histogram)})"
    return None


def label_map(rule: BinaryMask | ColourMask, mask: Image.Image, brightest: int) -> Image.Image:
    """Return labels 0, 1, … as 8-bit grey."""
    if isinstance(rule, ColourMask):
        return Image.fromarray(_nearest(rule, mask)[0])
    return _grey(mask).point([int(value > brightest / 2) for value in range(256)])


def _grey(mask: Image.Image) -> Image.Image:
    # the maximum, not the mean: (255, 0, 0) is an annotation too. For grey masks, as Kvasir-SEG's, both agree.
    return mask if mask.mode == "L" else reduce(ImageChops.lighter, mask.split())


def _nearest(rule: ColourMask, mask: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the label whose colour is nearest, and how far its channels are off at most."""
    pixels = np.asarray(mask.convert("RGB"))
    labels = np.zeros(pixels.shape[:2], np.uint8)
    distance = pixels.max(axis=2)
    for colour, label in rule.colours.items():
        away = np.abs(pixels.astype(np.int16) - colour).max(axis=2).astype(np.uint8)
        nearer = away < distance
        labels[nearer] = label
        distance = np.minimum(distance, away)
    return labels, distance


def _text(histogram: np.ndarray) -> str:
    width = 256 // _BINS
    counts = histogram.reshape(_BINS, width).sum(axis=1)
    return ", ".join(f"{i * width}-{i * width + width - 1}: {n}" for i, n in enumerate(counts) if n)

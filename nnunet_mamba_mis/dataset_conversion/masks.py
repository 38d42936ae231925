"""Turn masks as drawn into label maps, and tell those that do not mean what their set's rule says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import chain, permutations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from nnunet_mamba_mis.dataset_conversion.dataset import (
    BLACK,
    BinaryMask,
    Colour,
    ColourMask,
    LabelMask,
    MaskRule,
    colour_texts,
)
from nnunet_mamba_mis.dataset_conversion.problems import EMPTY_MASK, NOT_BINARY, UNKNOWN_VALUE
from nnunet_mamba_mis.utils.text import shortened

_WHITE = (255, 255, 255)

# compression moves values so far, of 255
_NOISE = 31

# Pixels between dark and bright are soft edges, as of resized masks, if both are within so many pixels. A mask is
# unclear if other such pixels are more of what is drawn than this, and more of the whole mask than this.
_EDGE_REACH = 3
_UNCLEAR_OF_DRAWN = 0.1
_UNCLEAR_OF_ALL = 0.0005

# a channel further off its class's colour than this is neither that colour nor compression noise
_UNCLEAR_DISTANCE = 96

# A level is a value that fills areas: 3 × 3 pixels around so many of its pixels are the same. Those of labels do;
# noise and soft edges vary from pixel to pixel (JPEG at any quality: below 0.03, resized JPEGs below 0.2).
_LEVEL_FLATNESS = 0.25

# 3 × 3 pixels off edges that differ by at most this, of 255, were drawn: wide soft edges are steeper
_PLATEAU = 7
_LOSSY_PLATEAU = 24

# shades of a colour are off it by so much, as each channel is rounded
_ROUNDING = 1.5

# A mask without loss that has no more values than this was neither compressed nor resized, or hardly.
_FEW_VALUES = 8

_BINS = 8

# colours, how many pixels have each, and around how many of these 3 × 3 are the same
_Census = tuple[list[Colour], list[int], list[int]]


@dataclass(frozen=True)
class MaskFacts:
    """What a mask holds.

    Args:
        drawn: Number of pixels of a class.
        fault: What is wrong with the mask by itself, to be read after its path; "" if nothing is.
        histogram: Of a binary mask: how many pixels have each of 256 brightnesses.
        level: Of a binary mask: what its foreground is drawn in; None if it has none.
        unclear: Of a binary mask: how many pixels are between black and its level, but at no edge.
        plateau: Of a binary mask: how many of these are in the middle of 3 × 3 that are alike.
        exact: Of a binary mask: nothing is in it but its levels.
        labels: Of a mask of several classes: those in it.
    """

    drawn: int
    fault: str = ""
    histogram: NDArray[np.int64] | None = None
    level: Colour | None = None
    unclear: int = 0
    plateau: int = 0
    exact: bool = False
    labels: frozenset[int] = frozenset()


def measure(rule: MaskRule, mask: Image.Image, lossy: bool) -> MaskFacts:
    """Return what a mask holds.

    Args:
        rule: Of the dataset.
        mask: Grey or RGB.
        lossy: It was a JPEG, whose values are not exactly those that were drawn.
    """
    if isinstance(rule, BinaryMask):
        return _measure_binary(_without_paint(rule, _grey_if_it_is(mask, lossy)), lossy)
    if isinstance(rule, LabelMask) and not lossy:
        labels, unknown = _looked_up(rule, mask)
        as_values = None if rule.by_value else False
        fault = f"holds {_counted(unknown, as_values)}, which no --labels names" if unknown else ""
    else:
        labels, fault = _measure_nearest(rule, mask)
    counts = np.bincount(labels.ravel())
    ignored = rule.ignored if isinstance(rule, LabelMask) else None
    drawn = sum(int(n) for label, n in enumerate(counts) if label not in (0, ignored))
    return MaskFacts(drawn, fault, labels=frozenset(np.flatnonzero(counts).tolist()))


def common_level(facts: Iterable[MaskFacts]) -> Colour:
    """Return what the foreground of a source's binary masks is drawn in: the level of most, the brightest of equals."""
    drawn = [(mask.level, mask.exact) for mask in facts if mask.level]
    counts = Counter(level for level, _ in drawn)
    exact = {level for level, is_exact in drawn if is_exact}
    level = _most_frequent(counts) or _WHITE
    near = {other: n for other, n in counts.items() if other in exact and _apart(other, level) <= _noise(max(level))}
    return _most_frequent(near) or level


def mask_problem(rule: MaskRule, facts: MaskFacts, level: Colour) -> tuple[str, str] | None:
    """Return kind and reason if a mask is empty or not clear.

    Args:
        rule: Of the dataset.
        facts: Of the mask.
        level: The `common_level` of the source.
    """
    if facts.fault:
        return (UNKNOWN_VALUE if isinstance(rule, LabelMask) else NOT_BINARY), facts.fault
    if facts.drawn == 0:
        return EMPTY_MASK, "is empty: nothing is drawn in it"
    if facts.histogram is None or facts.level is None:
        return None
    brightest, noise = max(level), _noise(max(level))
    if not facts.histogram[brightest // 2 + 1 :].any():
        values = f"no value above {max(facts.level)}, expected 0 and {brightest}"
        return NOT_BINARY, f"has {values} ({_text(facts.histogram)})"
    is_speck = not facts.exact and max(facts.level) < brightest - noise
    if not is_speck and _apart(facts.level, level) > (0 if facts.exact else noise):
        this, others = colour_texts([facts.level, level])
        return NOT_BINARY, f"is drawn in {this}, but other masks in {others}"
    # a speck has no bright pixel that its edges could be next to
    unclear = int(facts.histogram[noise + 1 : brightest - noise].sum()) if is_speck else facts.unclear
    drawn = int(facts.histogram[noise + 1 :].sum())
    if facts.plateau or _is_too_much(unclear, drawn, int(facts.histogram.sum())):
        reason = f"is not clearly a mask: {unclear} pixels lie in between (values {_text(facts.histogram)})"
        return NOT_BINARY, reason
    return None


def label_map(rule: MaskRule, mask: Image.Image, lossy: bool, level: Colour = _WHITE) -> Image.Image:
    """Return labels 0, 1, … as 8-bit grey.

    Args:
        rule: Of the dataset.
        mask: Grey or RGB.
        lossy: It was a JPEG.
        level: The `common_level` of the source, which counts for binary masks.
    """
    if isinstance(rule, BinaryMask):
        return _brightness(mask).point([int(value > max(level) / 2) for value in range(256)])
    if isinstance(rule, LabelMask) and not lossy:
        return Image.fromarray(_looked_up(rule, mask)[0])
    return Image.fromarray(_nearest(_meaning(rule), mask)[0])


def merged(labels: Sequence[Image.Image]) -> Image.Image:
    """Return the union of label maps of one size."""
    return reduce(ImageChops.lighter, labels)


def conflict(one: Image.Image, other: Image.Image) -> int:
    """Return how many pixels two label maps give different labels, background aside."""
    first, second = np.asarray(one), np.asarray(other)
    return int(np.count_nonzero((first != second) & (first > 0) & (second > 0)))


# masks of one class


def _brightness(mask: Image.Image) -> Image.Image:
    # the maximum, not the mean: (255, 0, 0) is an annotation too. For grey masks, as Kvasir-SEG's, both agree.
    return mask if mask.mode == "L" else reduce(ImageChops.lighter, mask.split())


def _grey_if_it_is(mask: Image.Image, lossy: bool) -> Image.Image:
    """Return a mask of equal channels, or nearly so in a JPEG, as grey."""
    if mask.mode == "L":
        return mask
    red, green, blue = mask.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        return red
    bright, dark = _brightness(mask), reduce(ImageChops.darker, (red, green, blue))
    spread = np.asarray(ImageChops.subtract(bright, dark)).max()
    return bright if lossy and spread <= _NOISE else mask


def _without_paint(rule: BinaryMask, mask: Image.Image) -> Image.Image:
    if mask.mode != "L" or not rule.painted:
        return mask
    dark = rule.painted * int(np.asarray(mask).max()) // 255
    return mask.point([value if value > dark else 0 for value in range(256)])


def _measure_binary(mask: Image.Image, lossy: bool) -> MaskFacts:
    census = _census(mask)
    colours, counts, _ = census
    histogram = np.bincount([max(colour) for colour in colours], counts, 256).astype(int)
    drawn = int(histogram[1:].sum())
    if lossy and len(colours) == 1 and max(colours[0]) <= _NOISE:
        return MaskFacts(0)  # a black JPEG may come out as 1 or 2
    levels = _levels(mask, census, lossy)
    exact = not lossy and len(colours) <= 2
    dark = min(levels, key=max)
    if len(levels) > 2 or (len(levels) == 2 and max(dark) > (0 if exact else _noise(max(map(max, levels))))):
        found = _counted({level: counts[colours.index(level)] for level in levels})
        return MaskFacts(drawn, f"holds {found}: more than black and one other level")
    level = max(levels, key=max)
    if mask.mode != "L" and _is_too_much(_off_colour(mask, level), drawn, mask.width * mask.height):
        return MaskFacts(drawn, f"holds other colours than black and {colour_texts([level])[0]}")
    unclear, plateau = _unclear(mask, max(level), _LOSSY_PLATEAU if lossy else _PLATEAU)
    return MaskFacts(drawn, "", histogram, level if drawn else None, unclear, plateau, exact)


def _unclear(mask: Image.Image, brightest: int, alike: int) -> tuple[int, int]:
    """Return how many pixels are between black and bright but at no edge, and how many of them in plateaus."""
    pixels, noise = np.asarray(_brightness(mask)), _noise(brightest)
    dark, bright = pixels <= noise, pixels >= brightest - noise
    unclear = ~dark & ~bright
    if unclear.any():
        unclear &= ~(_near(dark, _EDGE_REACH) & _near(bright, _EDGE_REACH))
    if not unclear.any():
        return 0, 0
    low, high = (
        np.asarray(_brightness(mask).filter(rank(3))) for rank in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    return int(unclear.sum()), int((unclear & (high - low <= alike * brightest // 255)).sum())


def _off_colour(mask: Image.Image, level: Colour) -> int:
    """Return how many pixels are neither in a colour nor in a darker shade of it, as soft edges are."""
    pixels = np.asarray(mask, np.int16)
    shades = pixels.max(axis=2, keepdims=True) * (np.array(level) / max(level))
    return int(np.count_nonzero(np.abs(pixels - shades).max(axis=2) > _UNCLEAR_DISTANCE))


def _levels(mask: Image.Image, census: _Census, lossy: bool) -> list[Colour]:
    """Return the values that were drawn: all but noise and soft edges, sorted by brightness."""
    colours, counts, flat = census
    brightest = max(map(max, colours))
    count_of = dict(zip(colours, counts, strict=True))
    few = not lossy and len(colours) <= _FEW_VALUES
    ends = (
        [colour for colour in colours if max(colour) <= _noise(brightest)],
        [colour for colour in colours if max(colour) >= brightest - _noise(brightest)],
    )
    levels = {max(end, key=lambda colour: count_of[colour]) for end in ends if end}
    between = [colour for colour in colours if colour not in levels]
    # noise lies on both sides of the middle, soft edges lie between the levels
    if few and len({2 * max(colour) > brightest for colour in between}) == 1 and not _are_edges(mask, levels):
        levels.update(between)
    for colour, n, n_flat in zip(colours, counts, flat, strict=True):
        if n_flat > (0 if few else _LEVEL_FLATNESS * n):
            levels.add(colour)
    return sorted(levels, key=lambda colour: (max(colour), colour))


def _are_edges(mask: Image.Image, levels: Collection[Colour]) -> bool:
    """Return whether each pixel of another value is a shade of two levels and has both next to it."""
    if len(levels) != 2:
        return False
    dark, bright = (np.array(level) for level in sorted(levels, key=max))
    pixels = np.asarray(mask.convert("RGB")).astype(np.int16)
    is_dark, is_bright = ((pixels == level).all(axis=2) for level in (dark, bright))
    others = ~(is_dark | is_bright)
    if not (_near(is_dark, 1) & _near(is_bright, 1))[others].all():
        return False
    found = pixels[others]
    share = (found.max(axis=1, keepdims=True) - dark.max()) / (bright.max() - dark.max())
    return bool((np.abs(found - dark - share * (bright - dark)) <= _ROUNDING).all())


def _near(where: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return what is at most this many rows and columns off a pixel."""
    for transposed in (False, True):
        here = where.T if transposed else where
        near = here.copy()
        for step in range(1, reach + 1):
            near[step:] |= here[:-step]
            near[:-step] |= here[step:]
        where = near.T if transposed else near
    return where


def _most_frequent(counts: Mapping[Colour, int]) -> Colour | None:
    return max(counts, key=lambda colour: (counts[colour], max(colour), colour), default=None)


def _noise(brightest: int) -> int:
    return _NOISE * brightest // 255


# masks of several classes


def _meaning(rule: ColourMask | LabelMask) -> Mapping[Colour, int]:
    return rule.meaning if isinstance(rule, LabelMask) else {BLACK: 0, **rule.colours}


def _looked_up(rule: LabelMask, mask: Image.Image) -> tuple[NDArray[np.uint8], dict[Colour, int]]:
    """Return the label of each pixel, and how many pixels have a colour that means nothing."""
    mask = _grey_if_it_is(mask, lossy=False)
    if mask.mode == "L":
        label_of = {value: rule.meaning.get((value, value, value)) for value in range(256)}
        labels = np.asarray(mask.point([label or 0 for label in label_of.values()]))
        unknown = {(v, v, v): n for v, n in enumerate(mask.histogram()) if n and label_of[v] is None}
        return labels, unknown
    packed = _packed(mask)
    labels, known = np.zeros(packed.shape, np.uint8), np.zeros(packed.shape, bool)
    for colour, label in rule.meaning.items():
        here = packed == _code(colour)
        labels[here] = label
        known |= here
    codes, counts = np.unique(packed[~known], return_counts=True)
    return labels, dict(zip(map(_colour, codes.tolist()), counts.tolist(), strict=True))


def _measure_nearest(rule: ColourMask | LabelMask, mask: Image.Image) -> tuple[NDArray[np.uint8], str]:
    """Return the label of each pixel of a mask with noise, and what is wrong with the mask."""
    meaning = _meaning(rule)
    labels, distance = _nearest(meaning, mask)
    exact_colours = isinstance(rule, LabelMask)
    if exact_colours and not _distinct_in_jpeg(tuple(meaning)):
        return labels, "is a JPEG, whose noise and soft edges look like labels so close to each other: save it as PNG"
    if unknown := _unknown_levels(meaning, mask, distance, _NOISE if exact_colours else _UNCLEAR_DISTANCE):
        return labels, f"holds {_counted(unknown)}, which is the colour of no class"
    histogram = np.bincount(distance.ravel(), minlength=256)
    unclear = int(histogram[_UNCLEAR_DISTANCE:].sum())
    if _is_too_much(unclear, int(np.count_nonzero(labels)), distance.size):
        text = f"{unclear} pixels lie in between (distances from the nearest colour {_text(histogram)})"
        return labels, f"is not clearly a mask: {text}"
    return labels, ""


def _unknown_levels(
    meaning: Mapping[Colour, int], mask: Image.Image, distance: NDArray[np.uint8], most: int
) -> dict[Colour, int]:
    """Return the levels that are further than this off every colour with a meaning, and their numbers of pixels."""
    if not ((distance > most) & _flat(_packed(mask))).any():
        return {}
    return {
        colour: n
        for colour, n, flat in zip(*_census(mask.convert("RGB")), strict=True)
        if flat > _LEVEL_FLATNESS * n and min(_apart(colour, known) for known in meaning) > most
    }


def _nearest(meaning: Mapping[Colour, int], mask: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the label whose colour is nearest, and how far its channels are off at most."""
    pixels = np.asarray(mask.convert("RGB")).astype(np.int16)
    labels = np.zeros(pixels.shape[:2], np.uint8)
    distance = np.full(pixels.shape[:2], 255, np.uint8)
    for colour, label in meaning.items():
        away = np.abs(pixels - colour).max(axis=2).astype(np.uint8)
        nearer = away < distance
        labels[nearer] = label
        distance = np.minimum(distance, away)
    return labels, distance


@lru_cache
def _distinct_in_jpeg(colours: tuple[Colour, ...]) -> bool:
    """Return whether no colour is within noise of another, or of the soft edge between two others."""
    steps = np.linspace(0, 1, 33)[:, None]
    points = np.array(colours, float)
    edges = (
        (points[i] + (points[j] - points[i]) * steps, points[k]) for i, j, k in permutations(range(len(points)), 3)
    )
    pairs = ((points[i], points[j]) for i, j in permutations(range(len(points)), 2))
    return all(np.abs(edge - point).max(axis=-1).min() > 2 * _NOISE for edge, point in chain(pairs, edges))


# both


def _census(mask: Image.Image) -> _Census:
    """Return the colours of a mask, how many pixels have each, and around how many of these 3 × 3 are the same."""
    if mask.mode == "L":
        histogram = mask.histogram()
        values = [value for value in range(256) if histogram[value]]
        flat = [0] * 256
        if len(values) > 2:
            flat = mask.histogram(Image.fromarray(_flat(np.asarray(mask)).view(np.uint8)))
        return [(value,) * 3 for value in values], [histogram[v] for v in values], [flat[v] for v in values]
    pixels = _packed(mask)
    codes, counts = np.unique(pixels, return_counts=True)
    found = np.zeros(len(codes), int)
    if len(codes) > 2:
        found += np.bincount(np.searchsorted(codes, pixels[_flat(pixels)]), minlength=len(codes))
    return [_colour(code) for code in codes.tolist()], counts.tolist(), found.tolist()


def _flat(pixels: NDArray) -> NDArray[np.bool_]:
    """Return where the 3 × 3 pixels around one are the same."""
    flat = np.zeros(pixels.shape, bool)
    if min(pixels.shape) >= 3:
        right, down = pixels[:, 1:] == pixels[:, :-1], pixels[1:] == pixels[:-1]
        rows = right[:, 1:] & right[:, :-1]
        flat[1:-1, 1:-1] = rows[:-2] & rows[1:-1] & rows[2:] & down[1:, 1:-1] & down[:-1, 1:-1]
    return flat


def _packed(mask: Image.Image) -> NDArray[np.int32]:
    """Return the colour of each pixel as one number."""
    red, green, blue = (np.asarray(channel, np.int32) for channel in mask.convert("RGB").split())
    return red << 16 | green << 8 | blue


def _code(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _apart(one: Colour, other: Colour) -> int:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _is_too_much(unclear: int, drawn: int, all_pixels: int) -> bool:
    return bool(unclear > _UNCLEAR_OF_DRAWN * drawn and unclear > _UNCLEAR_OF_ALL * all_pixels)


def _counted(found: Mapping[Colour, int], as_values: bool | None = None) -> str:
    colours = sorted(found, key=lambda colour: (max(colour), colour))
    texts = colour_texts(colours, as_values)
    return shortened([f"{text} ({found[colour]} pixels)" for text, colour in zip(texts, colours, strict=True)])


def _text(histogram: NDArray[np.int64]) -> str:
    width = 256 // _BINS
    counts = histogram.reshape(_BINS, width).sum(axis=1)
    return ", ".join(f"{i * width}-{i * width + width - 1}: {n}" for i, n in enumerate(counts) if n)

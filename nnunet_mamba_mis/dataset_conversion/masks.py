"""Convert masks to label maps, and detect masks that do not follow their dataset's rule."""

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

# largest change of a value by compression, of 255
_NOISE = 31

# A pixel between dark and bright belongs to a soft edge, as in a resized mask, if a dark and a bright pixel lie within
# this many pixels of it. A mask is unclear if its other in-between pixels exceed both of these fractions: the first of
# the drawn pixels, the second of all pixels.
_EDGE_REACH = 3
_UNCLEAR_OF_DRAWN = 0.1
_UNCLEAR_OF_ALL = 0.0005

# a channel that differs more than this from its class's colour is neither that colour nor compression noise
_UNCLEAR_DISTANCE = 96

# A level is a value that fills areas: more than this fraction of its pixels are the centre of 3 × 3 equal pixels.
# Labels fill areas. Noise and soft edges vary from pixel to pixel, so the fraction is lower: below 0.03 in a JPEG of
# any quality, below 0.2 in a resized JPEG.
_LEVEL_FLATNESS = 0.25

# away from edges, 3 × 3 pixels whose values differ by at most this, of 255, were drawn: wide soft edges are steeper
_PLATEAU = 7
_LOSSY_PLATEAU = 24

# largest deviation of a colour's shade from exact proportion, because each channel is rounded
_ROUNDING = 1.5

# a lossless mask with at most this many values is unlikely to have been compressed or resized
_FEW_VALUES = 8

_BINS = 8

# colours, the number of pixels of each, and how many of these are the centre of 3 × 3 equal pixels
_Census = tuple[list[Colour], list[int], list[int]]


@dataclass(frozen=True)
class MaskFacts:
    """The contents of a mask.

    Args:
        drawn: Number of foreground pixels.
        fault: A problem of this mask alone, to be printed after its path; "" if there is none.
        histogram: Binary masks: number of pixels of each of 256 brightnesses.
        level: Binary masks: the colour of the foreground; None without foreground.
        unclear: Binary masks: number of pixels between black and the level that are not at an edge.
        plateau: Binary masks: number of unclear pixels in the middle of 3 × 3 similar pixels.
        exact: Binary masks: whether the mask contains nothing but its levels.
        labels: Masks of several classes: the labels present.
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
    """Return the contents of a mask.

    Args:
        rule: The dataset's mask rule.
        mask: Grey or RGB.
        lossy: Whether the file was a JPEG, whose values differ slightly from those drawn.
    """
    if isinstance(rule, BinaryMask):
        return _measure_binary(_without_paint(rule, _as_grey_if_grey(mask, lossy)), lossy)
    if isinstance(rule, LabelMask) and not lossy:
        labels, unknown = _look_up(rule, mask)
        as_values = None if rule.by_value else False
        fault = f"contains {_counted(unknown, as_values)}, which --labels does not name" if unknown else ""
    else:
        labels, fault = _measure_nearest(rule, mask)
    counts = np.bincount(labels.ravel())
    ignored = rule.ignored if isinstance(rule, LabelMask) else None
    drawn = sum(int(n) for label, n in enumerate(counts) if label not in (0, ignored))
    return MaskFacts(drawn, fault, labels=frozenset(np.flatnonzero(counts).tolist()))


def common_level(facts: Iterable[MaskFacts]) -> Colour:
    """Return the level of a source's binary masks: the most frequent one, or the brightest of equally frequent ones.

    If exact masks have levels that differ from this level by no more than compression noise, the most frequent of those
    levels is returned instead, as exact masks have the level that was drawn.
    """
    drawn = [(mask.level, mask.exact) for mask in facts if mask.level]
    counts = Counter(level for level, _ in drawn)
    exact = {level for level, is_exact in drawn if is_exact}
    level = _most_frequent(counts) or _WHITE
    near = {other: n for other, n in counts.items() if other in exact and _distance(other, level) <= _noise(max(level))}
    return _most_frequent(near) or level


def mask_problem(rule: MaskRule, facts: MaskFacts, level: Colour) -> tuple[str, str] | None:
    """Return the kind and description of a mask's problem; None if it has none.

    Args:
        rule: The dataset's mask rule.
        facts: The mask's contents.
        level: The `common_level` of the source.
    """
    if facts.fault:
        return (UNKNOWN_VALUE if isinstance(rule, LabelMask) else NOT_BINARY), facts.fault
    if facts.drawn == 0:
        return EMPTY_MASK, "is empty: it has no foreground"
    if facts.histogram is None or facts.level is None:
        return None
    brightest, noise = max(level), _noise(max(level))
    if not facts.histogram[brightest // 2 + 1 :].any():
        values = f"no value above {max(facts.level)}, expected 0 and {brightest}"
        return NOT_BINARY, f"has {values} ({_text(facts.histogram)})"
    is_speck = not facts.exact and max(facts.level) < brightest - noise
    if not is_speck and _distance(facts.level, level) > (0 if facts.exact else noise):
        this, others = colour_texts([facts.level, level])
        return NOT_BINARY, f"is drawn in {this}, other masks in {others}"
    # a speck is too small for any of its pixels to reach the level, so its edges have no bright pixel beside them
    unclear = int(facts.histogram[noise + 1 : brightest - noise].sum()) if is_speck else facts.unclear
    drawn = int(facts.histogram[noise + 1 :].sum())
    if facts.plateau or _is_too_much(unclear, drawn, int(facts.histogram.sum())):
        reason = f"is not clearly a mask: {unclear} pixels have intermediate values ({_text(facts.histogram)})"
        return NOT_BINARY, reason
    return None


def label_map(rule: MaskRule, mask: Image.Image, lossy: bool, level: Colour = _WHITE) -> Image.Image:
    """Return labels 0, 1, … as an 8-bit grey image.

    Args:
        rule: The dataset's mask rule.
        mask: Grey or RGB.
        lossy: Whether the file was a JPEG.
        level: The `common_level` of the source, for binary masks.
    """
    if isinstance(rule, BinaryMask):
        return _brightness(mask).point([int(value > max(level) / 2) for value in range(256)])
    if isinstance(rule, LabelMask) and not lossy:
        return Image.fromarray(_look_up(rule, mask)[0])
    return Image.fromarray(_nearest(_meaning(rule), mask)[0])


def merged(labels: Sequence[Image.Image]) -> Image.Image:
    """Return the union of label maps of equal size."""
    return reduce(ImageChops.lighter, labels)


def conflict(one: Image.Image, other: Image.Image) -> int:
    """Return the number of pixels to which two label maps give different foreground labels."""
    first, second = np.asarray(one), np.asarray(other)
    return int(np.count_nonzero((first != second) & (first > 0) & (second > 0)))


# masks of one class


def _brightness(mask: Image.Image) -> Image.Image:
    # the maximum, not the mean: (255, 0, 0) is an annotation too; for grey masks such as Kvasir-SEG's, both agree
    return mask if mask.mode == "L" else reduce(ImageChops.lighter, mask.split())


def _as_grey_if_grey(mask: Image.Image, lossy: bool) -> Image.Image:
    """Return a mask with equal channels (in a JPEG, nearly equal ones) as grey, and any other unchanged."""
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
        return MaskFacts(0)  # a black JPEG may decode to 1 or 2
    levels = _levels(mask, census, lossy)
    exact = not lossy and len(colours) <= 2
    dark = min(levels, key=max)
    if len(levels) > 2 or (len(levels) == 2 and max(dark) > (0 if exact else _noise(max(map(max, levels))))):
        listed = _counted({level: counts[colours.index(level)] for level in levels})
        return MaskFacts(drawn, f"contains {listed}: more than black and one other level")
    level = max(levels, key=max)
    if mask.mode != "L" and _is_too_much(_off_colour(mask, level), drawn, mask.width * mask.height):
        return MaskFacts(drawn, f"contains colours other than black and {colour_texts([level])[0]}")
    unclear, plateau = _unclear(mask, max(level), _LOSSY_PLATEAU if lossy else _PLATEAU)
    return MaskFacts(drawn, "", histogram, level if drawn else None, unclear, plateau, exact)


def _unclear(mask: Image.Image, brightest: int, alike: int) -> tuple[int, int]:
    """Return how many pixels between black and bright are not at an edge, and how many of these are in plateaus."""
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
    """Return the number of pixels that have neither the level's colour nor a darker shade of it, as soft edges have."""
    pixels = np.asarray(mask, np.int16)
    shades = pixels.max(axis=2, keepdims=True) * (np.array(level) / max(level))
    return int(np.count_nonzero(np.abs(pixels - shades).max(axis=2) > _UNCLEAR_DISTANCE))


def _levels(mask: Image.Image, census: _Census, lossy: bool) -> list[Colour]:
    """Return the values that were drawn, without noise and soft edges, sorted by brightness."""
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
    # a few values on one side of half brightness were drawn, unless they are soft edges; noise lies on both sides
    if few and len({2 * max(colour) > brightest for colour in between}) == 1 and not _are_edges(mask, levels):
        levels.update(between)
    for colour, n, n_flat in zip(colours, counts, flat, strict=True):
        if n_flat > (0 if few else _LEVEL_FLATNESS * n):
            levels.add(colour)
    return sorted(levels, key=lambda colour: (max(colour), colour))


def _are_edges(mask: Image.Image, levels: Collection[Colour]) -> bool:
    """Return whether there are two levels, and each pixel of another value is a mixture of them and adjoins both."""
    if len(levels) != 2:
        return False
    dark, bright = (np.array(level) for level in sorted(levels, key=max))
    pixels = np.asarray(mask.convert("RGB")).astype(np.int16)
    is_dark, is_bright = ((pixels == level).all(axis=2) for level in (dark, bright))
    others = ~(is_dark | is_bright)
    if not (_near(is_dark, 1) & _near(is_bright, 1))[others].all():
        return False
    shades = pixels[others]
    share = (shades.max(axis=1, keepdims=True) - dark.max()) / (bright.max() - dark.max())
    return bool((np.abs(shades - dark - share * (bright - dark)) <= _ROUNDING).all())


def _near(where: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return the pixels at most `reach` rows and columns away from a pixel in `where`."""
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


def _look_up(rule: LabelMask, mask: Image.Image) -> tuple[NDArray[np.uint8], dict[Colour, int]]:
    """Return the label of each pixel, and the number of pixels of each unknown colour."""
    mask = _as_grey_if_grey(mask, lossy=False)
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
    """Return the label of each pixel of a noisy mask, and the problem of the mask ("" if none)."""
    meaning = _meaning(rule)
    labels, distance = _nearest(meaning, mask)
    exact_colours = isinstance(rule, LabelMask)
    if exact_colours and not _distinct_in_jpeg(tuple(meaning)):
        return labels, "is a JPEG, but its labels are too similar to distinguish from JPEG noise: save it as PNG"
    if unknown := _unknown_levels(meaning, mask, distance, _NOISE if exact_colours else _UNCLEAR_DISTANCE):
        return labels, f"contains {_counted(unknown)}, which is not the colour of a class"
    histogram = np.bincount(distance.ravel(), minlength=256)
    unclear = int(histogram[_UNCLEAR_DISTANCE:].sum())
    if _is_too_much(unclear, int(np.count_nonzero(labels)), distance.size):
        text = f"{unclear} pixels have intermediate colours (distances from the nearest class {_text(histogram)})"
        return labels, f"is not clearly a mask: {text}"
    return labels, ""


def _unknown_levels(
    meaning: Mapping[Colour, int], mask: Image.Image, distance: NDArray[np.uint8], most: int
) -> dict[Colour, int]:
    """Return the levels that differ by more than `most` from every known colour, with their numbers of pixels."""
    if not ((distance > most) & _flat(_packed(mask))).any():
        return {}
    return {
        colour: n
        for colour, n, flat in zip(*_census(mask.convert("RGB")), strict=True)
        if flat > _LEVEL_FLATNESS * n and min(_distance(colour, known) for known in meaning) > most
    }


def _nearest(meaning: Mapping[Colour, int], mask: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return, for each pixel, the label of the nearest colour and the largest channel difference from that colour."""
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
    """Return whether every colour differs from the others, and from soft edges between two others, despite noise."""
    steps = np.linspace(0, 1, 33)[:, None]
    points = np.array(colours, float)
    edges = (
        (points[i] + (points[j] - points[i]) * steps, points[k]) for i, j, k in permutations(range(len(points)), 3)
    )
    pairs = ((points[i], points[j]) for i, j in permutations(range(len(points)), 2))
    return all(np.abs(edge - point).max(axis=-1).min() > 2 * _NOISE for edge, point in chain(pairs, edges))


# masks of either kind


def _census(mask: Image.Image) -> _Census:
    """Return a mask's colours, the number of pixels of each, and how many are the centre of 3 × 3 equal pixels."""
    if mask.mode == "L":
        histogram = mask.histogram()
        values = [value for value in range(256) if histogram[value]]
        flat = [0] * 256
        if len(values) > 2:
            flat = mask.histogram(Image.fromarray(_flat(np.asarray(mask)).view(np.uint8)))
        return [(value,) * 3 for value in values], [histogram[v] for v in values], [flat[v] for v in values]
    pixels = _packed(mask)
    codes, counts = np.unique(pixels, return_counts=True)
    flat_counts = np.zeros(len(codes), int)
    if len(codes) > 2:
        flat_counts += np.bincount(np.searchsorted(codes, pixels[_flat(pixels)]), minlength=len(codes))
    return [_colour(code) for code in codes.tolist()], counts.tolist(), flat_counts.tolist()


def _flat(pixels: NDArray) -> NDArray[np.bool_]:
    """Return which pixels are the centre of 3 × 3 equal pixels."""
    flat = np.zeros(pixels.shape, bool)
    if min(pixels.shape) >= 3:
        right, down = pixels[:, 1:] == pixels[:, :-1], pixels[1:] == pixels[:-1]
        rows = right[:, 1:] & right[:, :-1]
        flat[1:-1, 1:-1] = rows[:-2] & rows[1:-1] & rows[2:] & down[1:, 1:-1] & down[:-1, 1:-1]
    return flat


def _packed(mask: Image.Image) -> NDArray[np.int32]:
    """Return the colour of each pixel packed into one number."""
    red, green, blue = (np.asarray(channel, np.int32) for channel in mask.convert("RGB").split())
    return red << 16 | green << 8 | blue


def _code(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _distance(first: Colour, second: Colour) -> int:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def _is_too_much(unclear: int, drawn: int, all_pixels: int) -> bool:
    return bool(unclear > _UNCLEAR_OF_DRAWN * drawn and unclear > _UNCLEAR_OF_ALL * all_pixels)


def _counted(pixels_of: Mapping[Colour, int], as_values: bool | None = None) -> str:
    colours = sorted(pixels_of, key=lambda colour: (max(colour), colour))
    texts = colour_texts(colours, as_values)
    return shortened([f"{text} ({pixels_of[colour]} pixels)" for text, colour in zip(texts, colours, strict=True)])


def _text(histogram: NDArray[np.int64]) -> str:
    width = 256 // _BINS
    counts = histogram.reshape(_BINS, width).sum(axis=1)
    return ", ".join(f"{i * width}-{i * width + width - 1}: {n}" for i, n in enumerate(counts) if n)

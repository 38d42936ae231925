"""Check and convert cases: `check_case` and `convert_case` run in worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.dataset import BinaryMask, Case, Colour, LabelMask, MaskRule
from nnunet_mamba_mis.dataset_conversion.fingerprints import fingerprint
from nnunet_mamba_mis.dataset_conversion.images import BadFileError, SourceImage, upright, write_png
from nnunet_mamba_mis.dataset_conversion.masks import MaskFacts, conflict, label_map, measure, merged
from nnunet_mamba_mis.dataset_conversion.problems import CONFLICT, DUPLICATE, SIZE_MISMATCH, UNREADABLE, Problem
from nnunet_mamba_mis.dataset_conversion.resize import resized
from nnunet_mamba_mis.dataset_conversion.workers import KILLED


@dataclass(frozen=True)
class CaseFacts:
    """The contents of a readable case.

    Args:
        case: The case.
        image_sha256: Hash of the image's file.
        masks_sha256: Hash of each mask's file.
        size: Width and height as distributed.
        orientation: EXIF orientation, the same for image and masks.
        masks: Contents of each mask.
        fingerprint: 256 bits, nearly the same for copies at another size or quality; empty for a flat image.
        bits: Bits that the samples of a 16-bit image need; 0 for an image with 8 bits per channel.
    """

    case: Case
    image_sha256: str
    masks_sha256: tuple[str, ...]
    size: tuple[int, int]
    orientation: int
    masks: tuple[MaskFacts, ...]
    fingerprint: bytes
    bits: int


@dataclass(frozen=True)
class ConvertJob:
    """A case to convert.

    Args:
        facts: The case's contents.
        rule: How to read its masks.
        level: The `common_level` of all masks.
        image_file: PNG to write the image to.
        label_file: PNG to write the label map to.
        side: Side in pixels to resize to; None keeps the size.
        keep_aspect: Pad instead of stretching.
        bits: Bit depth that 16-bit images are scaled from.
    """

    facts: CaseFacts
    rule: MaskRule
    level: Colour
    image_file: Path
    label_file: Path
    side: int | None
    keep_aspect: bool
    bits: int


def check_case(rule: MaskRule, case: Case) -> CaseFacts | list[Problem]:
    """Decode a case's files, and return their contents or their problems."""
    problems: list[Problem] = []
    image = None
    masks: list[tuple[SourceImage, MaskFacts]] = []
    with _reported(case, case.image, problems):
        image = SourceImage(case.image)
        image.check()
        # scaled by the image's own bit depth: the source's is not yet known, and would hardly change the fingerprint
        image_fingerprint = fingerprint(upright(image.rgb(image.bits), image.orientation))
    for path in case.masks:
        with _reported(case, path, problems):
            mask = SourceImage(path)
            mask.check()
            masks.append((mask, measure(rule, mask.mask(_by_value(rule)), _is_lossy(path))))
            if image:
                problems += _disagreement(case, image, path, mask)
    if not problems and len(masks) > 1 and not isinstance(rule, BinaryMask):
        problems += _conflicts(case, rule, [mask for mask, _ in masks])
    if problems or not image:
        return problems
    sources, facts = zip(*masks, strict=True)
    sha256 = tuple(source.sha256 for source in sources)
    return CaseFacts(case, image.sha256, sha256, image.size, image.orientation, facts, image_fingerprint, image.bits)


def _by_value(rule: MaskRule) -> bool:
    return isinstance(rule, LabelMask) and rule.by_value


def _is_lossy(path: Path) -> bool:
    # SourceImage has checked that the suffix matches the format
    return path.suffix.lower() in (".jpg", ".jpeg")


@contextmanager
def _reported(case: Case, path: Path, problems: list[Problem]) -> Iterator[None]:
    try:
        yield
    except BadFileError as error:
        problems.append(Problem(UNREADABLE, f"{path} {error}", case.identifier))


def _disagreement(case: Case, image: SourceImage, path: Path, mask: SourceImage) -> list[Problem]:
    if image.size != mask.size:
        image_size, mask_size = (" × ".join(map(str, source.size)) for source in (image, mask))
        text = f"{path} has {mask_size} pixels, but its image {case.image} has {image_size}"
        return [Problem(SIZE_MISMATCH, text, case.identifier)]
    if image.orientation != mask.orientation:
        text = (
            f"{path} has EXIF orientation {mask.orientation}, but its image {case.image} has {image.orientation}, so "
            "it is unclear which is upright"
        )
        return [Problem(SIZE_MISMATCH, text, case.identifier)]
    if image.sha256 == mask.sha256:
        return [Problem(DUPLICATE, f"{path} is the same file as its image {case.image}", case.identifier)]
    return []


def _conflicts(case: Case, rule: MaskRule, masks: Sequence[SourceImage]) -> list[Problem]:
    """Return a problem for each pair of masks that give a pixel different labels."""
    labels = {
        path: label_map(rule, mask.mask(_by_value(rule)), _is_lossy(path))
        for path, mask in zip(case.masks, masks, strict=True)
    }
    return [
        Problem(CONFLICT, f"{first} and {second} give different labels to {pixels} pixels", case.identifier)
        for first, second in combinations(labels, 2)
        if (pixels := conflict(labels[first], labels[second]))
    ]


def convert_case(job: ConvertJob) -> list[str] | Problem:
    """Write a case as an RGB image and a label map.

    Returns:
        A description of each change, or the problem of a file that was fine when it was checked.

    Raises:
        OSError: A PNG cannot be written.
    """
    case = job.facts.case
    path = case.image
    try:
        source = SourceImage(path, job.facts.image_sha256)
        image, done = source.rgb(job.bits), source.done(job.bits)
        labels = []
        for path, sha256 in zip(case.masks, job.facts.masks_sha256, strict=True):
            mask = SourceImage(path, sha256).mask(_by_value(job.rule))
            labels.append(label_map(job.rule, mask, _is_lossy(path), job.level))
        label = merged(labels)
    except BadFileError as error:
        return Problem(UNREADABLE, f"{path} {error}", case.identifier)
    image, label = (upright(pixels, job.facts.orientation) for pixels in (image, label))
    if job.side:
        image = resized(image, job.side, job.keep_aspect, is_label=False)
        label = resized(label, job.side, job.keep_aspect, is_label=True)
        done.append(f"resized to {job.side} × {job.side}, {'padded' if job.keep_aspect else 'stretched'}")
    write_png(image, job.image_file)
    write_png(label, job.label_file)
    return done


def killed_check(case: Case) -> list[Problem]:
    """Return the problem of a case that killed the process that checked it."""
    return [_killed(case)]


def killed_conversion(job: ConvertJob) -> Problem:
    """Return the problem of a case that killed the process that converted it."""
    return _killed(job.facts.case)


def _killed(case: Case) -> Problem:
    text = f"{case.image} or its mask {' or '.join(map(str, case.masks))} {KILLED}"
    return Problem(UNREADABLE, text, case.identifier)

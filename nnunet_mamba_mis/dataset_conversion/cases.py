"""Check a case and convert it; both run in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.dataset import BinaryMask, Case, ColourMask
from nnunet_mamba_mis.dataset_conversion.fingerprints import fingerprint
from nnunet_mamba_mis.dataset_conversion.images import BadFileError, SourceImage, upright, write_png
from nnunet_mamba_mis.dataset_conversion.masks import MaskFacts, label_map, measure
from nnunet_mamba_mis.dataset_conversion.problems import DUPLICATE, SIZE_MISMATCH, UNREADABLE, Problem
from nnunet_mamba_mis.dataset_conversion.resize import resized
from nnunet_mamba_mis.dataset_conversion.workers import KILLED


@dataclass(frozen=True)
class CaseFacts:
    """What a readable case holds.

    Args:
        case: The case.
        image_sha256: Of the image's file.
        mask_sha256: Of the mask's file.
        size: Width and height as distributed.
        orientation: Of EXIF, the same for both.
        mask: What is in the mask.
        fingerprint: 256 bits, the same or nearly so for copies at another size or quality; empty for a flat image.
        bits: How many the samples of a 16-bit image need; 0 for an image with 8 bits a channel.
    """

    case: Case
    image_sha256: str
    mask_sha256: str
    size: tuple[int, int]
    orientation: int
    mask: MaskFacts
    fingerprint: bytes
    bits: int


@dataclass(frozen=True)
class ConvertJob:
    """A case to convert.

    Args:
        facts: Of the case.
        rule: How to read its mask.
        brightest: The brightest value of all masks.
        image_file: PNG of the image, to be written.
        label_file: PNG of the label map, to be written.
        side: To resize to, in pixels; None keeps the size.
        keep_aspect: Pad rather than stretch.
        bits: What 16-bit images are scaled from.
    """

    facts: CaseFacts
    rule: BinaryMask | ColourMask
    brightest: int
    image_file: Path
    label_file: Path
    side: int | None
    keep_aspect: bool
    bits: int


def check_case(rule: BinaryMask | ColourMask, case: Case) -> CaseFacts | list[Problem]:
    """Decode a case's files and return what they hold, or what is wrong with them."""
    problems: list[Problem] = []
    image = mask = None
    with _reported(case, case.image, problems):
        image = SourceImage(case.image)
        image.check()
        # of a 16-bit image with its own range: that of the source is not known yet, and changes next to nothing here
        of_image = fingerprint(upright(image.rgb(image.bits), image.orientation))
    with _reported(case, case.mask, problems):
        mask = SourceImage(case.mask)
        mask.check()
        facts = measure(rule, mask.mask())
    if image and mask:
        problems += _disagreement(case, image, mask)
    if problems or not image or not mask:
        return problems
    return CaseFacts(case, image.sha256, mask.sha256, image.size, image.orientation, facts, of_image, image.bits)


@contextmanager
def _reported(case: Case, path: Path, problems: list[Problem]) -> Iterator[None]:
    try:
        yield
    except BadFileError as error:
        problems.append(Problem(UNREADABLE, f"{path} {error}", case.identifier))


def _disagreement(case: Case, image: SourceImage, mask: SourceImage) -> list[Problem]:
    if image.size != mask.size:
        image_size, mask_size = (" × ".join(map(str, source.size)) for source in (image, mask))
        text = f"{case.mask} is {mask_size} pixels, but its image {case.image} is {image_size}"
        return [Problem(SIZE_MISMATCH, text, case.identifier)]
    if image.orientation != mask.orientation:
        text = (
            f"{case.mask} has EXIF orientation {mask.orientation}, but its image {case.image} has {image.orientation}: "
            "which of them is upright is unknown"
        )
        return [Problem(SIZE_MISMATCH, text, case.identifier)]
    if image.sha256 == mask.sha256:
        return [Problem(DUPLICATE, f"{case.mask} is the same file as its image {case.image}", case.identifier)]
    return []


def convert_case(job: ConvertJob) -> list[str] | Problem:
    """Write a case as an RGB image and a label map.

    Returns:
        What was done, in a few words each, or what is wrong with a file that was fine when it was checked.

    Raises:
        OSError: A PNG cannot be written.
    """
    case = job.facts.case
    path = case.image
    try:
        source = SourceImage(path, job.facts.image_sha256)
        image, done = source.rgb(job.bits), source.done(job.bits)
        path = case.mask
        label = label_map(job.rule, SourceImage(path, job.facts.mask_sha256).mask(), job.brightest)
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
    """Return what is wrong with a case that ended the process that checked it."""
    return [_killed(case)]


def killed_conversion(job: ConvertJob) -> Problem:
    """Return what is wrong with a case that ended the process that converted it."""
    return _killed(job.facts.case)


def _killed(case: Case) -> Problem:
    text = f"{case.image} or its mask {case.mask} {KILLED}"
    return Problem(UNREADABLE, text, case.identifier)

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
    """

    case: Case
    image_sha256: str
    mask_sha256: str
    size: tuple[int, int]
    orientation: int
    mask: MaskFacts
    fingerprint: bytes


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
    """

    facts: CaseFacts
    rule: BinaryMask | ColourMask
    brightest: int
    image_file: Path
    label_file: Path
    side: int | None
    keep_aspect: bool


def check_case(rule: BinaryMask | ColourMask, case: Case) -> CaseFacts | list[Problem]:
    """Decode a case's files and return what they hold, or what is wrong with them."""
    problems: list[Problem] = []
    image = mask = None
    with _reported(case, case.image, problems):
        image = SourceImage(case.image)
        image.check()
        bits = fingerprint(upright(image.rgb(), image.orientation))
    with _reported(case, case.mask, problems):
        mask = SourceImage(case.mask)
        mask.check()
        facts = measure(rule, mask.mask())
    if image and mask:
        problems += _disagreement(case, image, mask)
    if problems or not image or not mask:
        return problems
    return CaseFacts(case, image.sha256, mask.sha256, image.size, image.orientation, facts, bits)


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
        source = _unchanged(path, job.facts.image_sha256)
        image, done = source.rgb(), _what_is_done(job, source)
        path = case.mask
        label = label_map(job.rule, _unchanged(path, job.facts.mask_sha256).mask(), job.brightest)
    except BadFileError as error:
        return Problem(UNREADABLE, f"{path} {error}", case.identifier)
    image, label = (upright(pixels, job.facts.orientation) for pixels in (image, label))
    if job.side:
        image = resized(image, job.side, job.keep_aspect, is_label=False)
        label = resized(label, job.side, job.keep_aspect, is_label=True)
    write_png(image, job.image_file)
    write_png(label, job.label_file)
    return done


def _unchanged(path: Path, sha256: str) -> SourceImage:
    source = SourceImage(path)
    if source.sha256 != sha256:
        raise BadFileError("changed while it was converted")
    return source


def _what_is_done(job: ConvertJob, source: SourceImage) -> list[str]:
    done = [] if source.mode == "RGB" else [f"{source.mode} to RGB"]
    if job.facts.orientation != 1:
        done.append(f"EXIF orientation {job.facts.orientation} applied")
    if job.side:
        how = "padded" if job.keep_aspect else "stretched"
        done.append(f"resized to {job.side} × {job.side}, {how}")
    return done

"""Convert a folder of new images for prediction, reading them exactly as the dataset converters do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.dataset_conversion.images import BadFileError, SourceImage, upright, write_png
from nnunet_mamba_mis.dataset_conversion.layouts import DOCUMENTS
from nnunet_mamba_mis.dataset_conversion.overlaps import REPORT_FILE
from nnunet_mamba_mis.dataset_conversion.problems import FOREIGN, SAME_NAME, UNREADABLE, Problem, problems_error
from nnunet_mamba_mis.dataset_conversion.report import Names
from nnunet_mamba_mis.dataset_conversion.sixteen_bits import report_entry
from nnunet_mamba_mis.dataset_conversion.tree import IMAGE_SUFFIXES, Tree, case_identifier
from nnunet_mamba_mis.dataset_conversion.work_folder import work_folder
from nnunet_mamba_mis.dataset_conversion.workers import KILLED, Workers, workers
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import count_cores
from nnunet_mamba_mis.utils.text import shortened


@dataclass(frozen=True)
class NewImages:
    """The outcome of converting a folder of images.

    Args:
        folder: Folder of the images for nnU-Net.
        number: Number of images.
        with_16_bits: Number of images with 16 bits per channel.
        bits: Bit depth that the 16-bit images were scaled from; None if there are none.
        left_out: Problem of each image or file that --skip-bad left out.
    """

    folder: Path
    number: int
    with_16_bits: int
    bits: int | None
    left_out: list[str]


@dataclass(frozen=True)
class _ImageFacts:
    """A readable image, and the number of bits that its 16-bit samples need."""

    identifier: str
    path: Path
    sha256: str
    size: tuple[int, int]
    bits: int


@dataclass(frozen=True)
class _ImageJob:
    """An image to convert, and the PNG to write."""

    facts: _ImageFacts
    bits: int
    file: Path


class _NewFolder:
    """The output folder, as a target for `work_folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.raw = self.folder.parent
        self.check_is_free()

    def check_is_free(self) -> None:
        """Raise UserError if the folder exists and is not empty."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"{self.folder} exists and is not empty: give another folder with -o")


def convert_images(
    source: Path, output: Path, bits: int | None = None, skip_bad: bool = False, processes: int | None = None
) -> NewImages:
    """Convert the images of a folder; the output folder appears atomically, with all images.

    Args:
        source: The folder of images, or a folder that contains one at any depth.
        output: A folder that does not exist yet, or is empty.
        bits: Bit depth that 16-bit images are scaled from; default: the depth that the brightest image needs.
        skip_bad: Leave out images and files with problems instead of failing.
        processes: Number of images to process in parallel; 1 starts no process.

    Raises:
        UserError: An argument or a file cannot be used; nothing is left behind.
    """
    processes = min(8, count_cores()) if processes is None else processes
    if processes < 1:
        raise UserError(f"-np {processes}: the number of processes must be at least 1")
    target = _NewFolder(output)
    with work_folder(target) as work, workers(processes) as pool:
        paths, problems = _find(source)
        readable = _check(paths, bits, pool, problems)
        if problems and not skip_bad:
            raise problems_error(problems)
        bad = {problem.case for problem in problems}
        usable = [facts for facts in readable if facts.identifier not in bad]
        if not usable:
            raise UserError(f"no image in {source} can be used: {shortened([p.text for p in problems])}")
        depths = [facts.bits for facts in usable]
        white = bits or max(depths)
        built = work.subfolder("images")
        jobs = [_ImageJob(facts, white, built / f"{facts.identifier}_0000.png") for facts in usable]
        done = _convert(jobs, pool)
        report = _report(source, report_entry(depths, bits), problems, usable, done)
        (built / REPORT_FILE).write_text(report, encoding="utf-8")
        work.publish(built)
    with_16_bits = sum(map(bool, depths))
    left_out = [problem.text for problem in problems]
    return NewImages(target.folder, len(usable), with_16_bits, white if with_16_bits else None, left_out)


def _find(source: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Return the images by identifier, and problems with names and files."""
    if not source.is_dir():
        raise UserError(f"-i {source} is not a folder: give the folder of the images")
    tree = Tree([source])
    problems = list(tree.problems)
    folders = [folder for folder in tree if tree.images(folder)]
    if len(folders) != 1:
        listed = f": {shortened([str(folder) for folder in folders])}. Give only one of them with -i" if folders else ""
        raise UserError(f"found {len(folders) or 'no'} folders with images in {source}{listed}")
    paths: dict[str, Path] = {}
    # Windows and macOS ignore case in file names
    taken: dict[str, str] = {}
    for path in tree[folders[0]]:
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            identifier = case_identifier(path)
            first = taken.setdefault(identifier.casefold(), identifier)
            if first in paths:
                text = f"{path} gets the same case identifier as {paths[first]}: rename one of them"
                problems.append(Problem(SAME_NAME, text, first))
            else:
                paths[identifier] = path
        elif suffix not in DOCUMENTS:
            problems.append(Problem(FOREIGN, f"{path} is neither an image nor a document"))
    return paths, problems


def _check(paths: dict[str, Path], bits: int | None, pool: Workers, problems: list[Problem]) -> list[_ImageFacts]:
    """Return the images that can be converted, and add the problems of the others to `problems`."""
    outcomes = list(pool.map(partial(_check_image, bits), list(paths.items()), "Checking", _killed_check))
    problems += [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    return [outcome for outcome in outcomes if not isinstance(outcome, Problem)]


def _check_image(bits: int | None, named: tuple[str, Path]) -> _ImageFacts | Problem:
    identifier, path = named
    try:
        image = SourceImage(path)
        image.check()
        image.rgb(bits or image.bits)
    except BadFileError as error:
        return Problem(UNREADABLE, f"{path} {error}", identifier)
    return _ImageFacts(identifier, path, image.sha256, image.size, image.bits)


def _killed_check(named: tuple[str, Path]) -> Problem:
    identifier, path = named
    return Problem(UNREADABLE, f"{path} {KILLED}", identifier)


def _convert(jobs: Sequence[_ImageJob], pool: Workers) -> list[list[str]]:
    """Convert all images, and return a description of the changes to each."""
    outcomes = list(pool.map(_convert_image, jobs, "Converting", _killed_conversion))
    if problems := [outcome for outcome in outcomes if isinstance(outcome, Problem)]:
        raise problems_error(problems)
    return [outcome for outcome in outcomes if not isinstance(outcome, Problem)]


def _convert_image(job: _ImageJob) -> list[str] | Problem:
    facts = job.facts
    try:
        image = SourceImage(facts.path, facts.sha256)
        pixels = image.rgb(job.bits)
    except BadFileError as error:
        return Problem(UNREADABLE, f"{facts.path} {error}", facts.identifier)
    write_png(upright(pixels, image.orientation), job.file)
    return image.done(job.bits)


def _killed_conversion(job: _ImageJob) -> Problem:
    return _killed_check((job.facts.identifier, job.facts.path))


def _report(
    source: Path, images: dict[str, object], problems: list[Problem], usable: list[_ImageFacts], done: list[list[str]]
) -> str:
    names = Names({source: source})
    content = {
        "converted_by": f"nnunet-mamba-mis {__version__}",
        "images": images,
        "left_out": [{"identifier": p.case, "kind": p.kind, "why": names.relative_in_text(p.text)} for p in problems],
        "cases": [
            {
                "identifier": facts.identifier,
                "image": {"file": names.relative(facts.path), "sha256": facts.sha256},
                "original_size": list(facts.size),
                "done": what,
            }
            for facts, what in zip(usable, done, strict=True)
        ],
    }
    return json.dumps(content, indent=2) + "\n"

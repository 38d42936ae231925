"""Find the images and videos to predict, and name their outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.tree import IMAGE_SUFFIXES, case_identifier
from nnunet_mamba_mis.prediction.model import Model
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import shortened

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts"})


@dataclass(frozen=True)
class Case:
    """An image to predict.

    Args:
        identifier: Name of its output files, without the file ending.
        files: One file, or one per channel.
        is_stock: Whether the files look like the model's training images, so that the model's reader is tried first.
    """

    identifier: str
    files: tuple[Path, ...]
    is_stock: bool


@dataclass
class Inputs:
    """The images and videos to predict.

    Args:
        cases: Images, sorted by name.
        videos: Video files.
        problems: A message for each input that cannot be used.
    """

    cases: list[Case] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_inputs(sources: Sequence[Path], model: Model) -> Inputs:
    """Find images and videos.

    Files that follow nnU-Net's naming, CASE_0000 plus the model's file ending, form the case CASE, with one file per
    channel. Any other file is a case of its own, named after the file.

    Args:
        sources: Files and folders; folders are not searched recursively.
        model: Model that the images are for.

    Raises:
        UserError: A source does not exist or cannot be read, or there is nothing to predict.
    """
    inputs = Inputs()
    files: list[Path] = []
    for source in sources:
        files += _list_images(source, inputs, model)
    stock_cases = {file: case for case in _stock_cases(files, model) for file in case.files}
    cases: dict[str, Case] = {}
    for file in files:
        case = stock_cases.get(file) or _single_file_case(file, model)
        # file names on Windows and macOS ignore case
        other = cases.setdefault(case.identifier.casefold(), case)
        if other == case:
            continue
        inputs.problems.append(
            f"{file} and {other.files[0]} would both be written as {case.identifier}: rename one of them"
        )
    inputs.cases = list(cases.values())
    if not (inputs.cases or inputs.videos or inputs.problems):
        kinds = f"images ending in {model.dataset.file_ending}"
        kinds += ", other pictures" * model.is_of_pictures + " or videos"
        raise UserError(f"nothing to predict in {shortened([str(s) for s in sources])}: found no {kinds}")
    return inputs


def _list_images(source: Path, inputs: Inputs, model: Model) -> list[Path]:
    """Return a source's image files; append its videos, and a problem if it is an unusable file, to `inputs`."""
    try:
        named = not source.is_dir()
        files = [source] if named else sorted(path for path in source.iterdir() if path.is_file())
        if named and not source.exists():
            raise UserError(f"-i {source} does not exist")
    except OSError as error:
        raise UserError(f"-i {source} cannot be read: {error.strerror}") from None
    images = []
    for file in files:
        if file.name.startswith(".") and not named:
            continue
        if file.suffix.lower() in VIDEO_SUFFIXES:
            same = next((video for video in inputs.videos if video.stem == file.stem), None)
            if same:
                inputs.problems.append(
                    f"{file} and {same} would both be written as {file.stem}_overlay.mp4: rename one of them"
                )
            else:
                inputs.videos.append(file)
        elif file.name.endswith(model.dataset.file_ending) or _is_picture(file, model):
            images.append(file)
        elif named:
            inputs.problems.append(f"{file} is not an image for this model: its name must end in {_endings(model)}")
    return images


def _is_picture(file: Path, model: Model) -> bool:
    return model.is_of_pictures and file.suffix.lower() in IMAGE_SUFFIXES


def _endings(model: Model) -> str:
    endings = [model.dataset.file_ending, *(sorted(IMAGE_SUFFIXES) if model.is_of_pictures else ())]
    *others, last = dict.fromkeys(endings)
    return f"{', '.join(others)} or {last}" if others else last


def _stock_cases(files: Sequence[Path], model: Model) -> list[Case]:
    """Group files numbered by channel, from 0, into cases; skip other numbers, such as those of a camera (IMG_0001)."""
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(model.dataset.file_ending)}", re.DOTALL)
    channels: dict[Path, dict[int, Path]] = {}
    for file in files:
        if match := pattern.fullmatch(file.name):
            channels.setdefault(file.with_name(match[1]), {})[int(match[2])] = file
    return [
        Case(stem.name, tuple(numbered[number] for number in range(len(numbered))), True)
        for stem, numbered in channels.items()
        if len(numbered) in (1, model.channels) and set(numbered) == set(range(len(numbered)))
    ]


def _single_file_case(file: Path, model: Model) -> Case:
    """Return the case of one file, named after the file."""
    ending = model.dataset.file_ending
    if _is_picture(file, model):
        # `mamba_mis convert` writes only RGB, so a one-channel model was trained on images that nnU-Net itself read
        return Case(case_identifier(file), (file,), model.channels == 1 and file.name.endswith(ending))
    return Case(file.name.removesuffix(ending), (file,), True)

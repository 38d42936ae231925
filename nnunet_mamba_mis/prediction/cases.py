"""Which images and videos there are to predict, and what they are called."""

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
        identifier: Name of its outputs, without an ending.
        files: One, or one for each channel.
        is_stock: Whether they are named or made as the model's own images, so that the model's reader comes first.
    """

    identifier: str
    files: tuple[Path, ...]
    is_stock: bool


@dataclass
class Inputs:
    """What there is to predict.

    Args:
        cases: Images, in the order of their names.
        videos: Files.
        problems: What cannot be used, in words.
    """

    cases: list[Case] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_inputs(sources: Sequence[Path], model: Model) -> Inputs:
    """Find images and videos.

    Images named as nnU-Net's, CASE_0000 with the ending of the model's images, are CASE, with a file for each channel;
    all others are named by their file.

    Args:
        sources: Files, and folders, of which the files directly in them are taken.
        model: Whose images to look for.

    Raises:
        UserError: A source does not exist or cannot be read, or there is nothing to predict.
    """
    inputs = Inputs()
    names: list[Path] = []
    for source in sources:
        names += _listed(source, inputs, model)
    grouped = _stock_cases(names, model)
    taken: dict[str, Case] = {}
    of_file = {file: case for case in grouped for file in case.files}
    for file in names:
        case = of_file.get(file) or _single(file, model)
        # Windows and macOS do not tell capitals from small letters
        other = taken.setdefault(case.identifier.casefold(), case)
        if other == case:
            continue
        inputs.problems.append(f"{file} would be predicted as {case.identifier}, like {other.files[0]}: rename one")
    inputs.cases = list(taken.values())
    if not (inputs.cases or inputs.videos or inputs.problems):
        kinds = f"images ending with {model.dataset.file_ending}"
        kinds += ", other pictures" * model.is_of_pictures + " or videos"
        raise UserError(f"there is nothing to predict in {shortened([str(s) for s in sources])}: no {kinds}")
    return inputs


def _listed(source: Path, inputs: Inputs, model: Model) -> list[Path]:
    """Files of images; videos, and what was named but cannot be used, go to `inputs`."""
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
                inputs.problems.append(f"{file} would be predicted as {file.stem}, like {same}: rename one")
            else:
                inputs.videos.append(file)
        elif file.name.endswith(model.dataset.file_ending) or _is_picture(file, model):
            images.append(file)
        elif named:
            inputs.problems.append(f"{file} is no image for this model, whose images end with {_endings(model)}")
    return images


def _is_picture(file: Path, model: Model) -> bool:
    return model.is_of_pictures and file.suffix.lower() in IMAGE_SUFFIXES


def _endings(model: Model) -> str:
    endings = [model.dataset.file_ending, *(sorted(IMAGE_SUFFIXES) if model.is_of_pictures else ())]
    return ", ".join(dict.fromkeys(endings))


def _stock_cases(files: Sequence[Path], model: Model) -> list[Case]:
    """Cases of files with a number for each channel, from 0 on; cameras name IMG_0001 and so on without an end."""
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


def _single(file: Path, model: Model) -> Case:
    """A file whose name is the case's."""
    ending = model.dataset.file_ending
    if _is_picture(file, model):
        # `mamba_mis convert` makes colours of everything; images of one channel are nnU-Net's own
        return Case(case_identifier(file), (file,), model.channels == 1 and file.name.endswith(ending))
    return Case(file.name.removesuffix(ending), (file,), True)

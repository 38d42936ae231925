"""What a dataset, a case and a problem are to the converters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.utils.errors import UserError

TRAINING = "Tr"

MISSING = "missing"
SIZE_MISMATCH = "size mismatch"
UNREADABLE = "unreadable"
NOT_BINARY = "not clearly binary"
EMPTY_MASK = "empty mask"
DUPLICATE = "duplicate content"
SAME_NAME = "same case identifier"
FOREIGN = "foreign file"
# as they are listed
KINDS = (MISSING, SIZE_MISMATCH, UNREADABLE, NOT_BINARY, EMPTY_MASK, DUPLICATE, SAME_NAME, FOREIGN)

_MAX_LISTED = 10


@dataclass(frozen=True)
class Case:
    """An image and its mask.

    Args:
        identifier: nnU-Net's case identifier; unique within the dataset.
        image: the image as distributed.
        mask: the mask as distributed.
        subset: "Tr", or the name of a test set.
    """

    identifier: str
    image: Path
    mask: Path
    subset: str = TRAINING


@dataclass(frozen=True)
class Problem:
    """Something in the source that cannot be converted as it is.

    Args:
        kind: one of `KINDS`.
        text: a sentence that starts with the file's path.
        case: identifier of the case that --skip-bad leaves out, if it belongs to one.
    """

    kind: str
    text: str
    case: str | None = None


class Found(list[Case]):
    """The cases that lie in the sources, sorted by identifier.

    Args:
        problems: what is wrong with names and files.
    """

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        super().__init__()
        self.problems = list(problems)


@dataclass(frozen=True)
class BinaryMask:
    """How a set draws its one class: bright on dark.

    Args:
        dark: values up to it, of 255, are known to be background, as compression noise and painted borders are.
        bright: values from it on, of 255, are known to be foreground.
    """

    dark: int = 31
    bright: int = 224

    @property
    def rule(self) -> str:
        """The rule in words, for the report."""
        return f"foreground above half of the brightest value in all masks; up to {self.dark} is dark"


@dataclass(frozen=True)
class ColourMask:
    """How a set draws several classes: each in a colour, on black.

    Args:
        colours: (red, green, blue) of each label; a pixel belongs to the nearest colour, black included.
    """

    colours: Mapping[tuple[int, int, int], int]

    @property
    def rule(self) -> str:
        """The rule in words, for the report."""
        return "nearest of the colours black, " + ", ".join(map(str, self.colours))


@dataclass(frozen=True)
class Grouping:
    """Which cases must stay on one side of every split.

    Args:
        rule: what they share, in a few words.
        groups: takes the source folders and the cases; returns the group of each identifier that has one.
    """

    rule: str
    groups: Callable[[Sequence[Path], Sequence[Case]], Mapping[str, str]]


@dataclass(frozen=True)
class Dataset:
    """A public dataset that `mamba_mis convert` can read.

    Args:
        name: its name on the command line.
        folder_name: the default of --name, what follows "Dataset027_".
        title: what it is, in a few words.
        num_images: how many images the official download holds, as text.
        size: of the download, as text.
        layout: what SOURCE must hold, as text.
        labels: nnU-Net's labels, background included.
        reference: the publication.
        url: where to get it.
        licence: the licence, or the terms of use in a few words.
        find_cases: takes the source folders, returns what is there or raises UserError if it is something else.
        mask: how masks are to be read.
        grouping: what must stay together in splits, besides duplicates.
        official_validation: name of the subset that --official-split validates on; "" if there is none.
        empty_masks: whether an image with nothing to segment belongs to the set, rather than being a mistake.
        duplicates: whether a copy of an image is a warning, as in sets used as published, rather than a problem.
        warnings: takes identifier → subset of all cases; returns what is known to be wrong with using them.
    """

    name: str
    folder_name: str
    title: str
    num_images: str
    size: str
    layout: str
    labels: Mapping[str, int]
    reference: str
    url: str
    licence: str
    find_cases: Callable[[Sequence[Path]], Found]
    mask: BinaryMask | ColourMask = BinaryMask()
    grouping: Grouping | None = None
    official_validation: str = ""
    empty_masks: bool = False
    duplicates: bool = True
    warnings: Callable[[Mapping[str, str]], list[str]] = lambda subset_of: []


def problems_error(problems: Sequence[Problem]) -> UserError:
    """Return the one error that reports all problems of a source, with how many there are of each kind."""
    way_out = "Correct the source, or leave out what is named here with --skip-bad. Nothing was converted"
    if len(problems) == 1:
        return UserError(f"{problems[0].text} ({problems[0].kind}). {way_out}")
    counts = Counter(problem.kind for problem in problems)
    listed = ", ".join(f"{kind}: {counts[kind]}" for kind in KINDS if counts[kind])
    lines = [f"{len(problems)} problems in the source ({listed}):"]
    for kind in KINDS:
        lines += _some([f"  {kind}: {problem.text}" for problem in problems if problem.kind == kind])
    return UserError("\n".join([*lines, way_out]))


def _some(lines: list[str]) -> Iterable[str]:
    return lines if len(lines) <= _MAX_LISTED else [*lines[:_MAX_LISTED], f"  and {len(lines) - _MAX_LISTED} more"]

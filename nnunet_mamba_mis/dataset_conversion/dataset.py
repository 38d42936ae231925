"""What a dataset, a case and a rule for masks are to the converters. Cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.problems import Problem

TRAINING = "Tr"


@dataclass(frozen=True)
class BinaryMask:
    """How a set draws its one class: bright on dark.

    Args:
        dark: Values up to it, of 255, are known to be background, as compression noise and painted borders are.
        bright: Values from it on, of 255, are known to be foreground.
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
class Case:
    """An image and its mask.

    Args:
        identifier: nnU-Net's case identifier; unique within the dataset.
        image: The image as distributed.
        mask: The mask as distributed.
        subset: "Tr", or the name of a test set.
    """

    identifier: str
    image: Path
    mask: Path
    subset: str = TRAINING


class FoundCases(list[Case]):
    """The cases that lie in the sources, sorted by identifier.

    Args:
        problems: What is wrong with names and files.
    """

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        super().__init__()
        self.problems = list(problems)


@dataclass(frozen=True)
class Grouping:
    """Which cases must stay on one side of every split.

    Args:
        rule: What they share, in a few words.
        groups: Takes the source folders and the cases; returns the group of each identifier that has one.
    """

    rule: str
    groups: Callable[[Sequence[Path], Sequence[Case]], Mapping[str, str]]


@dataclass(frozen=True)
class Dataset:
    """A public dataset that `mamba_mis convert` can read.

    Args:
        name: Its name on the command line.
        folder_name: The default of --name, what follows "Dataset027_".
        title: What it is, in a few words.
        num_images: How many images the official download holds, as text.
        size: Of the download, as text.
        layout: What SOURCE must hold, as text.
        labels: nnU-Net's labels, background included.
        reference: The publication.
        url: Where to get it.
        licence: The licence, or the terms of use in a few words.
        find_cases: Takes the source folders, returns what is there or raises UserError if it is something else.
        mask: How masks are to be read.
        grouping: What must stay together in splits, besides duplicates.
        official_validation: Name of the subset that --official-split validates on; "" if there is none.
        empty_masks: Whether an image with nothing to segment belongs to the set, rather than being a mistake.
        duplicates: Whether a copy of an image is a warning, as in sets used as published, rather than a problem.
        warnings: Takes identifier → subset of all cases; returns what is known to be wrong with using them.
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
    find_cases: Callable[[Sequence[Path]], FoundCases]
    mask: BinaryMask | ColourMask = BinaryMask()
    grouping: Grouping | None = None
    official_validation: str = ""
    empty_masks: bool = False
    duplicates: bool = True
    warnings: Callable[[Mapping[str, str]], list[str]] = lambda subset_of: []

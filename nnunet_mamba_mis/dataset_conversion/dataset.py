"""What a dataset and a case are to the converters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.mask_rules import BinaryMask, ColourMask
from nnunet_mamba_mis.dataset_conversion.problems import Problem

TRAINING = "Tr"

_BRIGHT_ON_DARK = BinaryMask()


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
    mask: BinaryMask | ColourMask = _BRIGHT_ON_DARK
    grouping: Grouping | None = None
    official_validation: str = ""
    empty_masks: bool = False
    duplicates: bool = True
    warnings: Callable[[Mapping[str, str]], list[str]] = lambda subset_of: []

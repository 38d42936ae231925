"""What a dataset, a case and a rule for masks are to the converters. Cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.problems import Problem

TRAINING = "Tr"


# red, green, blue; a grey value is a colour of three equal channels
Colour = tuple[int, int, int]

BLACK = (0, 0, 0)


def colour_texts(colours: Sequence[Colour], as_values: bool | None = None) -> list[str]:
    """Return colours as --labels takes them: grey values as numbers, colours as #rrggbb.

    Args:
        colours: All that are named together.
        as_values: Whether as numbers; by default if all are grey.
    """
    if as_values is None:
        as_values = all(red == green == blue for red, green, blue in colours)
    return [str(colour[0]) if as_values else "#" + bytes(colour).hex() for colour in colours]


@dataclass(frozen=True)
class BinaryMask:
    """How a set draws its one class: in one bright level, the same in all masks, on black.

    Args:
        painted: Values up to it, of 255, are background painted where an annotation ran over the border.
    """

    painted: int = 0

    @property
    def rule(self) -> str:
        """The rule in words, for the report."""
        painted = f"; up to {self.painted} is background" if self.painted else ""
        return f"two levels, black and one that all masks share; foreground above half of it{painted}"


@dataclass(frozen=True)
class ColourMask:
    """How a set draws several classes: each in a colour, on black, with noise.

    Args:
        colours: The label of each colour; a pixel belongs to the nearest colour, black included.
    """

    colours: Mapping[Colour, int]

    @property
    def rule(self) -> str:
        """The rule in words, for the report."""
        return "nearest of the colours black, " + ", ".join(map(str, self.colours))


@dataclass(frozen=True)
class LabelMask:
    """What each value or colour in a user's masks means; there are no others, but for the noise of a JPEG.

    Args:
        meaning: The label of each colour or grey value, background included.
        names: Of the labels.
        by_value: Whether a palette image's indices are read, not its colours.
        ignored: The label of pixels that do not count, if there is one.
    """

    meaning: Mapping[Colour, int]
    names: Mapping[int, str]
    by_value: bool
    ignored: int | None = None

    @property
    def rule(self) -> str:
        """The rule in words, for the report."""
        texts = colour_texts(list(self.meaning), self.by_value)
        return ", ".join(
            f"{text} is {self.names[label]}" for text, label in zip(texts, self.meaning.values(), strict=True)
        )


MaskRule = BinaryMask | ColourMask | LabelMask


@dataclass(frozen=True)
class Case:
    """An image and its mask.

    Args:
        identifier: nnU-Net's case identifier; unique within the dataset.
        image: The image as distributed.
        mask: The mask as distributed.
        subset: "Tr", or the name of a test set.
        further_masks: Of other objects in the same image.
    """

    identifier: str
    image: Path
    mask: Path
    subset: str = TRAINING
    further_masks: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All masks of the image."""
        return (self.mask, *self.further_masks)


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
    mask: MaskRule = BinaryMask()
    grouping: Grouping | None = None
    official_validation: str = ""
    empty_masks: bool = False
    duplicates: bool = True
    warnings: Callable[[Mapping[str, str]], list[str]] = lambda subset_of: []

"""Data classes that describe datasets, cases and mask rules. Cheap to import."""

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
    """Return colours in the syntax of --labels: grey values as numbers, colours as #rrggbb.

    Args:
        colours: Colours to list together.
        as_values: Whether to write numbers; the default is to do so only if all colours are grey.
    """
    if as_values is None:
        as_values = all(red == green == blue for red, green, blue in colours)
    return [str(colour[0]) if as_values else "#" + bytes(colour).hex() for colour in colours]


@dataclass(frozen=True)
class BinaryMask:
    """Rule for masks of one class: one bright level, the same in all masks, on black.

    Args:
        painted: Values from 1 to this one are background, on a scale where the mask's brightest value is 255. They were
            painted where an annotation crossed the image border.
    """

    painted: int = 0

    @property
    def rule(self) -> str:
        """Description of the rule, for the report."""
        painted = f"; values up to {self.painted} are background" if self.painted else ""
        return f"two levels: black, and one that all masks share; foreground is above half of that level{painted}"


@dataclass(frozen=True)
class ColourMask:
    """Rule for noisy masks of several classes: each class has its own colour, on black.

    Args:
        colours: Label of each colour except black (background). A pixel belongs to the nearest colour, black included.
    """

    colours: Mapping[Colour, int]

    @property
    def rule(self) -> str:
        """Description of the rule, for the report."""
        return "nearest colour among black, " + ", ".join(map(str, self.colours))


@dataclass(frozen=True)
class LabelMask:
    """Rule for a user's masks: the label of each value or colour. Apart from JPEG noise, other values are errors.

    Args:
        meaning: Label of each colour or grey value, including the background.
        names: Name of each label.
        by_value: Whether to read a palette image's indices instead of its colours.
        ignored: Label of pixels to ignore, if any.
    """

    meaning: Mapping[Colour, int]
    names: Mapping[int, str]
    by_value: bool
    ignored: int | None = None

    @property
    def rule(self) -> str:
        """Description of the rule, for the report."""
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
        further_masks: Masks of other objects in the same image.
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
    """The cases found in the sources, sorted by identifier.

    Args:
        problems: Problems with names and files.
    """

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        super().__init__()
        self.problems = list(problems)


@dataclass(frozen=True)
class Grouping:
    """A rule for cases that no split may separate.

    Args:
        rule: What the cases of a group share, in a few words.
        groups: Function that takes the source folders and the cases, and returns the group of each identifier that
            has one.
    """

    rule: str
    groups: Callable[[Sequence[Path], Sequence[Case]], Mapping[str, str]]


@dataclass(frozen=True)
class Dataset:
    """A public dataset that `mamba_mis convert` can read.

    Args:
        name: Its name on the command line.
        folder_name: Default of --name: the dataset's name without a prefix such as "Dataset027_".
        title: Description in a few words.
        num_images: Number of images in the official download, as text.
        size: Size of the download, as text.
        layout: What SOURCE must contain, as text.
        labels: nnU-Net's labels, including the background.
        reference: The publication.
        url: Where to get the dataset.
        licence: The licence, or the terms of use in a few words.
        find_cases: Function that takes the source folders and returns their cases; raises UserError for another layout.
        mask: How to read masks.
        grouping: Cases, besides duplicates, that splits must keep together.
        official_validation: Name of the subset that --official-split validates on; "" if there is none.
        empty_masks: Whether images without an object are part of the dataset; otherwise they are problems.
        duplicates: Whether copies of an image only cause a warning (for published datasets); else they are problems.
        warnings: Function that takes the subset of each identifier and returns warnings about known pitfalls.
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

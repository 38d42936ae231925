"""How a dataset draws its masks, as data; `masks` applies these rules. Cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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

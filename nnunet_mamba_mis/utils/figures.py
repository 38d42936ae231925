"""Save figures that look the same on every machine and show names literally."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.text import one_line

# comes with matplotlib
_FONT = "DejaVu Sans"
_LONGEST_LINE = 500


@contextmanager
def plain_figures() -> Iterator[None]:
    """Draw with matplotlib's own settings instead of the user's, and without parsing text as mathematics."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["font.family"] = _FONT
        mpl.rcParams["text.parse_math"] = False
        yield


def for_figure(text: str, width: int = 34, most_lines: int = 4) -> str:
    """Format a name for a figure: in short lines, with escapes for characters that the font lacks.

    Args:
        text: The name.
        width: Width of a line, in characters.
        most_lines: Largest number of lines; a longer name loses its middle.
    """
    font = _font()
    shown = "".join(
        character if font.get_char_index(ord(character)) else character.encode("unicode_escape").decode()
        for character in one_line(text)
    )
    if len(shown) > width * most_lines:
        kept = width * most_lines - 1
        shown = f"{shown[: kept - kept // 2]}…{shown[len(shown) - kept // 2 :]}"
    lines = [""]
    # few names have spaces, so also break after underscores, and break a longer part at any character
    for part in shown.replace("_", "_\0").replace(" ", " \0").split("\0"):
        for word in (part[start : start + width] for start in range(0, len(part), width)):
            if lines[-1] and len(lines[-1]) + len(word.rstrip()) > width:
                lines.append("")
            lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def try_to_draw(draw: Callable[[Path], Sequence[str] | None], file: Path) -> list[str]:
    """Draw a figure that nothing else depends on: failures become warnings.

    Args:
        draw: Function that takes the file to write, and returns messages about what it left out.
        file: The PNG; if drawing fails it does not exist afterwards.

    Returns:
        Messages about what is missing, one line each, which are also printed.
    """
    try:
        problems = list(draw(file) or ())
    except Exception as error:  # untrusted files and drawing libraries raise exceptions of every kind
        for path in (file, file.with_suffix(".svg")):
            with suppress(OSError):
                path.unlink()
        problems = [f"{file.name} was not drawn: {type(error).__name__} {error}"]
    lines = [one_line(problem)[:_LONGEST_LINE] for problem in problems]
    for line in lines:
        print(f"mamba_mis: warning: {line}", file=sys.stderr)
    return lines


def save_figure(figure: Figure, file: Path, svg: bool = False) -> None:
    """Write a PNG, and optionally an SVG beside it; the same figure gives the same bytes.

    Raises:
        OSError: Writing failed.
    """
    contents = {file: io.BytesIO()}
    figure.savefig(contents[file], format="png")
    if svg:
        vector = file.with_suffix(".svg")
        contents[vector] = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": file.stem}):
            figure.savefig(contents[vector], format="svg", metadata={"Date": None})
    for path, content in contents.items():
        with atomic_write(path) as output:
            output.write(content.getvalue())


@functools.cache
def _font() -> FT2Font:
    return font_manager.get_font(font_manager.findfont(_FONT))

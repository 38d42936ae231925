"""Text for people: names as they are in any output, lists, numbers and times as people write them.

Names of files, classes, trainers and machines come from elsewhere and may hold anything: they pass through a function
of this module where they enter a page, a table or the terminal. `utils.figures` has the one for figures.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

# control characters, directions of writing, bytes of file names that are no text, line and paragraph separators
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# letters of Persian and Indic scripts and emoji are joined with these
_JOINERS = "\u200c\u200d"
# of spreadsheets; an apostrophe, so that the one which is put in front can be told from a name's own
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
# in characters, of at most four bytes each; file systems have 255 bytes
_LONGEST_FILE_NAME = 50
# what Markdown, with GitHub's additions, would take for markup; a bracket makes a link before ( [ or : alone, and
# underscores within words and < before a space are plain text
_MARKDOWN = re.compile(
    r"[\\`*|~$]|(?<!\w)_+|_+(?!\w)|\](?=[(\[:])|<(?=\S)|&(?=#?\w+;)"
    r"|^(?:#{1,6}(?=\s|$)|>|[-+](?=\s|$)|-(?=[-\s]*$))|^\d{1,9}[.)](?=\s|$)|(?<=\s)#+$"
)


def one_line(text: str) -> str:
    """Return a text without line breaks and invisible characters, which are written as escapes: \\n, \\x1b, \\u202e."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _INVISIBLE and character not in _JOINERS
        else character
        for character in text
    )


def is_utf8(name: str) -> bool:
    """Whether the bytes of a file's name are text: SimpleITK aborts the process where they are not."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def for_terminal(text: str) -> str:
    """Return lines of text that cannot move the cursor, colour the terminal or turn the direction of writing."""
    return "\n".join(map(one_line, text.split("\n")))


def for_markdown(text: str) -> str:
    """Return a line of Markdown that shows the text as it is."""
    return _MARKDOWN.sub(lambda match: re.sub(r"([^\w\s]|_)", r"\\\1", match[0]), one_line(text).strip())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells of Markdown, whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def code_block(text: str, language: str) -> str:
    """Return a block of code in Markdown, between more backticks than there are in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def for_spreadsheet(text: str) -> str:
    """Return a cell of a CSV file that no spreadsheet takes for a formula: with an apostrophe in front where one would.

    A reader that removes one leading apostrophe has the text again.
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def for_file_name(text: str) -> str:
    """Return a part of a file's name for a text; with a checksum where letters, digits and ._+()- are not enough."""
    safe = re.sub(r"[^\w.+()-]", "_", text)[:_LONGEST_FILE_NAME]
    if safe == text.replace(" ", "_"):
        return safe
    return f"{safe}_{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Return names in a line: the first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(one_line, names[:most])) + more


def shortened_lines(lines: Sequence[str], most: int = 10) -> list[str]:
    """Return lines of equal indent: the first of them, and one that says how many more there are."""
    if len(lines) <= most:
        return list(lines)
    indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
    return [*lines[:most], f"{indent}and {len(lines) - most} more"]


def duration(seconds: float) -> str:
    """Return a length of time: 5 s, 3 min 07 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"

"""Text for people: names shown literally in any output, and readable lists, numbers and times.

Names of files, classes, trainers and machines are untrusted and may contain anything. They pass through a function of
this module before they enter a page, a table or the terminal; `utils.figures` has the function for figures.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

# control characters, writing directions, bytes of file names that are not text, line and paragraph separators
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# letters of Persian and Indic scripts and emoji are joined with these
_JOINERS = "\u200c\u200d"
# starts of formulas in spreadsheets, and the apostrophe, so that an added apostrophe differs from a name's own
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
# in characters, of at most four bytes each; file systems allow 255 bytes
_LONGEST_FILE_NAME = 50
# markup in GitHub's Markdown; this excludes ] unless ( [ or : follows, underscores within words, and < before a space
_MARKDOWN = re.compile(
    r"[\\`*|~$]|(?<!\w)_+|_+(?!\w)|\](?=[(\[:])|<(?=\S)|&(?=#?\w+;)"
    r"|^(?:#{1,6}(?=\s|$)|>|[-+](?=\s|$)|-(?=[-\s]*$))|^\d{1,9}[.)](?=\s|$)|(?<=\s)#+$"
)


def one_line(text: str) -> str:
    """Return a text with line breaks and invisible characters written as escapes: \\n, \\x1b, \\u202e."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _INVISIBLE and character not in _JOINERS
        else character
        for character in text
    )


def is_utf8(name: str) -> bool:
    """Return whether the bytes of a file's name are UTF-8: SimpleITK aborts the process if they are not."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def for_terminal(text: str) -> str:
    """Return lines of text that cannot move the cursor, colour the terminal or change the writing direction."""
    return "\n".join(map(one_line, text.split("\n")))


def for_markdown(text: str) -> str:
    """Return a line of Markdown that shows the text literally."""
    return _MARKDOWN.sub(lambda match: re.sub(r"([^\w\s]|_)", r"\\\1", match[0]), one_line(text).strip())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are already Markdown: text in the first column, numbers in the others."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def code_block(text: str, language: str) -> str:
    """Return a code block in Markdown, between more backticks than it contains."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def for_spreadsheet(text: str) -> str:
    """Return a CSV cell that no spreadsheet takes for a formula: texts that look like one get a leading apostrophe.

    Removing one leading apostrophe restores the text.
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def for_file_name(text: str) -> str:
    """Return a text as part of a file's name, with a checksum if it is long or has unusual characters."""
    safe = re.sub(r"[^\w.+()-]", "_", text)[:_LONGEST_FILE_NAME]
    if safe == text.replace(" ", "_"):
        return safe
    return f"{safe}_{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Join names on one line: the first ones, then the number of the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(one_line, names[:most])) + more


def shortened_lines(lines: Sequence[str], most: int = 10) -> list[str]:
    """Return the first `most` of equally indented lines, then a line with the number of the rest."""
    if len(lines) <= most:
        return list(lines)
    indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
    return [*lines[:most], f"{indent}and {len(lines) - most} more"]


def duration(seconds: float) -> str:
    """Format a length of time: 5 s, 3 min 07 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"

"""A report as a list of blocks, written as Markdown or as a single HTML file. Markup in texts is escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader

from nnunet_mamba_mis.utils.text import for_markdown, markdown_table, one_line


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Warnings:
    """Warnings to read before trusting a table; nothing is shown if there are none."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table with text in the first column and numbers in the others; lines of a cell after the first are small."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure: a PNG beside the report, and its caption.

    Args:
        file: The PNG.
        caption: Description of the content.
        draw: Function that writes the PNG, and returns descriptions of what it had to leave out.
    """

    file: Path
    caption: str
    draw: Callable[[Path], Sequence[str] | None]


Block = Heading | Text | Warnings | Table | Picture


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return an HTML page that needs no other file."""
    loader = PackageLoader("nnunet_mamba_mis.benchmark.reporting")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"one_line": one_line, "data_uri": _data_uri}
    page = environment.get_template("report.html.j2")
    return page.render(title=title, blocks=[(type(block).__name__, block) for block in blocks])


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return GitHub-flavoured Markdown, with pictures as links to files in the same folder."""
    return "\n\n".join(filter(None, map(_markdown, blocks))) + "\n"


def _data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {for_markdown(block.text)}"
        case Text():
            return for_markdown(block.text)
        case Warnings():
            return "\n".join(f"- ⚠ {for_markdown(item)}" for item in block.items)
        case Table():
            header, *rows = [list(map(_markdown_cell, row)) for row in (block.header, *block.rows)]
            return markdown_table(header, rows)
        case Picture():
            caption = for_markdown(block.caption)
            return f"![{caption}]({quote(block.file.name)})\n\n{caption}"


def _markdown_cell(text: str) -> str:
    return "<br>".join(map(for_markdown, text.split("\n")))

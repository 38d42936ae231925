"""A report as a list of blocks, written as Markdown or as one HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` is in backticks."""

    text: str


@dataclass(frozen=True)
class Warnings:
    """What a reader has to know before believing a table; nothing if there is none."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table whose first column is text and whose others are numbers; further lines of a cell are small."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure: a PNG beside the report, and what it shows."""

    file: Path
    caption: str


Block = Heading | Text | Warnings | Table | Picture


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return a page that needs no other file."""
    loader = PackageLoader("nnunet_mamba_mis.benchmark.reporting")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"inline": _inline, "data_uri": _data_uri}
    page = environment.get_template("report.html.j2")
    return page.render(title=title, blocks=[(type(block).__name__, block) for block in blocks])


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return GitHub's Markdown, with pictures as links to files of the same folder."""
    return "\n\n".join(filter(None, map(_markdown, blocks))) + "\n"


def _inline(text: str) -> Markup:
    """Escape a text, whose code in backticks becomes an element."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def _data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Text():
            return block.text
        case Warnings():
            return "\n".join(f"- ⚠ {item}" for item in block.items)
        case Table():
            rule = ["---", *["---:"] * (len(block.header) - 1)]
            return "\n".join(f"| {' | '.join(map(_markdown_cell, row))} |" for row in (block.header, rule, *block.rows))
        case Picture():
            return f"![{block.caption}]({block.file.name})\n\n{block.caption}"


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")

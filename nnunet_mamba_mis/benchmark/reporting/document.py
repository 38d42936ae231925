"""A report as a list of blocks, written as Markdown or as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 1280px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.8em; } h2 { margin-top: 2.2em; border-bottom: 1px solid #ccd; } h3 { margin-top: 1.8em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6em 0 1.2em; display: block;
  overflow-x: auto; max-width: 100%; }
th, td { padding: .35em .6em; border-bottom: 1px solid #dde; text-align: right; vertical-align: top; }
th { border-bottom: 2px solid #99a; white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; } small { color: #667; font-weight: normal; } img { max-width: 100%; height: auto; }
figure { margin: 1em 0 2em; } figcaption { color: #556; font-size: .93em; max-width: 75em; }
.warning { background: #fff4e0; border-left: 4px solid #e08a00; padding: .3em 1em; margin: 1em 0; }
code { background: #eef0f4; padding: 0 .25em; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: #eef0f4; padding: .8em 1em; overflow-x: auto; }
"""
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
    """A table whose first column is text and whose others are numbers; a second line of a cell is small."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure: a PNG beside the report, and what it shows."""

    file: Path
    caption: str


Block = Heading | Text | Warnings | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return GitHub's Markdown, with pictures as links to files of the same folder."""
    return "\n\n".join(filter(None, map(_markdown, blocks))) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return a page that needs no other file."""
    body = "\n".join(filter(None, map(_html, blocks)))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


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


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{_inline(block.text)}</p>"
        case Warnings() if block.items:
            items = "".join(f"<li>{_inline(item)}</li>" for item in block.items)
            return f'<div class="warning"><ul>{items}</ul></div>'
        case Warnings():
            return ""
        case Table():
            head = _html_row("th", block.header)
            rows = "\n".join(_html_row("td", row) for row in block.rows)
            return f"<table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
        case Picture():
            image = base64.b64encode(block.file.read_bytes()).decode()
            caption = _inline(block.caption)
            return (
                f'<figure><img alt="{html.escape(block.caption)}" src="data:image/png;base64,{image}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_html_cell(cell)}</{tag}>' for cell in cells)}</tr>"


def _html_cell(text: str) -> str:
    first, *further = text.split("\n")
    return _inline(first) + "".join(f"<br><small>{_inline(line)}</small>" for line in further)


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", html.escape(text))

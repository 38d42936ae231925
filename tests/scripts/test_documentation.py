"""Links, drawings and generated pages of the documentation, checked without building the site."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn

from nnunet_mamba_mis.architectures import amffb, basic_blocks, mamba_mis, scan_blocks
from support.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "documentation").rglob("*.md"))]
MODULES = (amffb, basic_blocks, mamba_mis, scan_blocks, nn)
# a box's name has a smaller font than headings; a layer's channels may follow the name
NAME = re.compile(r'font-size="1[34]"[^>]*font-weight="bold">([A-Z]\w+)')


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_existing_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = {target for target in targets if "://" not in target and not (page.parent / target).exists()}
    assert not missing


@pytest.mark.parametrize("drawing", ["network", "block"])
def test_boxes_of_a_drawing_name_classes_of_the_network(drawing):
    text = (REPOSITORY / "documentation" / "images" / f"{drawing}.svg").read_text(encoding="utf-8")
    names = set(NAME.findall(text))
    assert len(names) > 4
    assert not {name for name in names if not any(hasattr(module, name) for module in MODULES)}


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[test](../../tests/conftest.py)", "test"),
        ("[scan](../explanation/selective_scan.md#precision)", "[scan](../explanation/selective_scan.md#precision)"),
        ("![picture](../images/block.svg)", "![picture](../images/block.svg)"),
        ("[torch](https://pytorch.org)", "[torch](https://pytorch.org)"),
    ],
    ids=["outside", "page", "picture", "address"],
)
def test_site_shows_links_to_outside_files_as_text(link, shown):
    assert shown_on_the_site(link) == shown


def test_site_warns_of_links_to_missing_files(caplog):
    with caplog.at_level(logging.WARNING, "mkdocs"):
        shown_on_the_site("[gone](../../tests/gone.py)")
    assert "tests/gone.py, which does not exist" in caplog.text


def shown_on_the_site(markdown: str) -> str:
    documentation = REPOSITORY / "documentation"
    source = documentation / "reference" / "page.md"
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(source), src_uri="reference/page.md"))
    return load("site_links").on_page_markdown(markdown, page=page, config={"docs_dir": str(documentation)})


def test_command_page_matches_the_help():
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("-d", metavar="ID", help="of nnUNet_raw")
        which.add_argument("-m", metavar="MODEL", type=Path)
        parser.add_argument("--kind", choices=("a", "b"), default="a", help="default: %(default)s")
        parser.add_argument("--all", action="store_true", help="<every> `one_fold`")

    module = SimpleNamespace(__doc__="Do it.", add_arguments=add_arguments)
    rows = load("command_reference").section("mamba_mis do", module).splitlines()
    assert rows[1:4] == ["## `mamba_mis do`", "", "Do it."]
    assert rows[7:] == [
        r"| `-d ID` | or `-m` | of nnUNet\_raw |",
        "| `-m MODEL` | or `-d` |  |",
        r"| `--kind a\|b` |  | default: a |",
        "| `--all` |  | &lt;every> `one_fold` |",
    ]

"""The tutorial notebook runs, and the site shows it."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from types import ModuleType

import pytest

from support.paths import REPOSITORY

NOTEBOOK = REPOSITORY / "documentation" / "tutorials" / "quickstart.ipynb"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_quickstart_finds_polyps_and_shows_outlines(tmp_path):
    pytest.importorskip("nbclient")
    executed = load("execute_notebook").execute(NOTEBOOK, tmp_path)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    (score,) = re.findall(r"mean Dice of 10 unseen images: (\d\.\d+)", text)
    assert float(score) > 0.6
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert len(list((tmp_path / "quickstart" / "predictions" / "overlays").glob("*.png"))) == 10


def test_stored_outputs_are_small_and_whole():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert NOTEBOOK.stat().st_size < 300_000


def test_page_of_a_notebook_has_its_text_code_and_outputs():
    picture = b"\x89PNG"
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]},
            {
                "cell_type": "code",
                "source": ["print(1)"],
                "outputs": [
                    {"output_type": "stream", "text": ["1\n"]},
                    {"output_type": "display_data", "data": {"image/png": base64.b64encode(picture).decode()}},
                ],
            },
        ]
    }
    text, pictures = load("notebook_pages").as_markdown(notebook)
    assert text.startswith("# Title\n\nText.\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n![")
    assert pictures == [picture]


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[notebook](tutorials/quickstart.ipynb)", "[notebook](tutorials/quickstart.md)"),
        ("[part](quickstart.ipynb#5-train)", "[part](quickstart.md#5-train)"),
        ("[elsewhere](https://example.org/a.ipynb)", "[elsewhere](https://example.org/a.ipynb)"),
        ("`quickstart.ipynb`", "`quickstart.ipynb`"),
    ],
    ids=["page", "section", "address", "name"],
)
def test_site_links_to_the_page_of_a_notebook(link, shown):
    assert load("notebook_pages").on_page_markdown(link) == shown

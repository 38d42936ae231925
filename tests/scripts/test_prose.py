"""The check of English in `make lint`: which words it reads, and which phrases it reports."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from support.paths import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "prose.py"
NOTEBOOK = """{"cells": [
 {
  "cell_type": "markdown",
  "source": [
   "Broken files are\\n",
   "passed over."
  ]
 },
 {
  "cell_type": "code",
  "source": [
   "passed over"
  ]
 }
]}
"""


@pytest.fixture(scope="module")
def prose():
    pytest.importorskip("proselint")
    spec = importlib.util.spec_from_file_location("prose", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(prose):
    return prose.register_checks()


@pytest.fixture
def findings(prose, config, tmp_path):
    def of(name: str, text: str) -> list[str]:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return [line.removeprefix(f"{file}:") for line in prose.findings(file, config, generated=True)]

    return of


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("page.md", "# Title\n\nBroken files are\npassed over.\n", 4),
        ("page.md", "| option | meaning |\n| --- | --- |\n| `-o` | passed over |\n", 3),
        ("notebook.ipynb", NOTEBOOK, 6),
        ("code.py", "x = 1  # files are\n# passed over\n", 2),
        ("code.py", 'def f():\n    """Return files.\n\n    Broken ones are passed over.\n    """\n', 4),
        ("code.py", 'raise ValueError(\n    "broken files are passed "\n    f"over: {name}"\n)\n', 2),
        ("code.h", "int n; // files are\n       // passed over\n", 2),
        ("code.sh", "set -e\n# broken files are passed over\n", 2),
    ],
    ids=["paragraph", "table", "notebook", "comments", "docstring", "message", "C++", "shell"],
)
def test_phrase_is_reported_with_its_replacement(findings, name, text, line):
    (found,) = findings(name, text)
    assert found.startswith(f"{line}: 'passed over': skip")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "Run `passed over` first.\n"),
        ("page.md", "```bash\n# passed over\n```\n"),
        ("page.md", 'Write "skipped" instead of "passed over".\n'),
        ("page.md", "[link](passed over)\n"),
        ("page.md", "The fold that passed\n\nover the line\n"),
        ("code.py", "passed_over = passed, over\n"),
        ("code.py", 'names = ["passed", "over"]\n'),
        ("code.sh", "echo passed over\n"),
    ],
    ids=["code", "block", "quotation", "address", "paragraphs", "names", "list", "command"],
)
def test_what_is_not_prose_is_not_reported(findings, name, text):
    assert not findings(name, text)


def test_repeated_word_is_reported_once_per_place(findings):
    assert len(findings("page.md", "Read the the page. It has 1 1 as text. Test. Test it.\n")) == 1


def test_command_names_the_line_and_fails(tmp_path):
    pytest.importorskip("proselint")
    page = tmp_path / "page.md"
    page.write_text("A clean line.\nSeamless.\n", encoding="utf-8")
    done = subprocess.run([sys.executable, SCRIPT, page], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    assert done.stdout.startswith(f"{page}:2: 'Seamless'")

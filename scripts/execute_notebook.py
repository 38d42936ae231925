"""Run all cells of a notebook in an empty folder, and store their outputs in the notebook.

Readers see the outputs on GitHub and on the site without running anything. The script removes metadata of the run.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
QUICKSTART = REPOSITORY / "documentation" / "tutorials" / "quickstart.ipynb"
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PROGRESS = re.compile(r"\d+%\|")


def execute(notebook: Path, folder: Path, seconds: int = 3000) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a run in `folder`.

    Args:
        notebook: Notebook file, which stays unchanged.
        folder: The working directory of all cells.
        seconds: Time limit per cell.

    Raises:
        CellExecutionError: A cell fails.
    """
    cells = nbformat.read(notebook, as_version=4)
    # the kernel is this Python, regardless of the kernels that the user has registered
    client = NotebookClient(
        cells,
        timeout=seconds,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        kernel_name="python3",
    )
    return client.execute()


def plain(executed: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Remove metadata, progress bars and the path of the run's folder from a notebook, and shrink its pictures."""
    executed.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in executed.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = list(_plain_outputs(cell.outputs, f"{folder.resolve()}/"))
    return executed


def _plain_outputs(outputs: list[nbformat.NotebookNode], folder: str) -> Iterator[nbformat.NotebookNode]:
    """Yield all text as one output, then the pictures."""
    text = "".join(output.get("text", "") for output in outputs).replace("\r\n", "\n").replace(folder, "")
    # a progress bar overwrites its line: keep what it wrote last
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in TERMINAL_COLOURS.sub("", text).splitlines()]
    lines = [line for line in lines if line.strip() and not PROGRESS.search(line)]
    if lines:
        yield nbformat.v4.new_output("stream", name="stdout", text="\n".join(lines) + "\n")
    for output in outputs:
        if "image/png" in output.get("data", {}):
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            small = io.BytesIO()
            picture.convert("RGB").quantize(128).save(small, "PNG", optimize=True)
            data = {"image/png": base64.b64encode(small.getvalue()).decode()}
            yield nbformat.v4.new_output("display_data", data=data)


def main() -> int:
    """Run a notebook and store its outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", nargs="?", type=Path, default=QUICKSTART, help="default: %(default)s")
    notebook = parser.parse_args().notebook
    with tempfile.TemporaryDirectory() as folder:
        executed = plain(execute(notebook, Path(folder)), Path(folder))
    nbformat.write(executed, notebook)
    return 0


if __name__ == "__main__":
    sys.exit(main())

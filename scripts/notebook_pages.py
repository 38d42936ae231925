"""MkDocs hook: turn each notebook of the documentation into a page with its stored outputs, without running it.

Links to `NAME.ipynb` in other pages open the notebook on GitHub, and its page on the site.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

LINK = re.compile(r"(\]\([^)#:\s]+)\.ipynb((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for each notebook, with its pictures. Keep the notebook itself for download."""
    # imported here so that as_markdown works without MkDocs
    from mkdocs.structure.files import File

    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = as_markdown(json.loads(Path(notebook.abs_src_path).read_text(encoding="utf-8")))
        name = notebook.src_uri.removesuffix(".ipynb")
        files.append(File.generated(config, f"{name}.md", content=text.replace("PICTURES/", f"{Path(name).name}/")))
        for number, picture in enumerate(pictures):
            files.append(File.generated(config, f"{name}/{number}.png", content=picture))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links to notebooks with links to their pages."""
    return LINK.sub(r"\1.md\2", markdown)


def as_markdown(notebook: dict[str, Any]) -> tuple[str, list[bytes]]:
    """Return a notebook as Markdown, and its pictures as PNG files."""
    parts: list[str] = []
    pictures: list[bytes] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![Output of the cell above](PICTURES/{len(pictures)}.png)")
                pictures.append(base64.b64decode("".join(data["image/png"])))
            else:
                text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures

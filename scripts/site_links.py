"""MkDocs hook: turn links to files outside the documentation into plain text, because the site lacks these files.

The Markdown files in the repository keep these links. A link to a missing file gives a warning, which makes
`mkdocs build --strict` fail, as a broken link within the site does.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.site_links")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return a page's text without links to files outside the documentation's folder."""
    root = Path(config["docs_dir"]).resolve()
    # generated pages have a source path, but no file
    source = root / page.file.src_uri

    def replacement(link: re.Match[str]) -> str:
        target = (source.parent / link[2]).resolve()
        if target.is_relative_to(root):
            return link[0]
        if not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, link[2])
        return link[1]

    return LINK.sub(replacement, markdown)

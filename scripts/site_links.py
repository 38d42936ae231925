"""Hook of MkDocs: links from the documentation to files outside it, which the site does not have, become plain text.

In the repository they are links. A link to a file that does not exist is a warning, with which `mkdocs build --strict`
fails, as with a broken link within the site.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.site_links")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return a page's text without links that leave the documentation's folder."""
    root = Path(config["docs_dir"]).resolve()
    # pages that a hook has made have a place, but no file
    source = root / page.file.src_uri

    def shown(link: re.Match[str]) -> str:
        target = (source.parent / link[2]).resolve()
        if target.is_relative_to(root):
            return link[0]
        if not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, link[2])
        return link[1]

    return LINK.sub(shown, markdown)

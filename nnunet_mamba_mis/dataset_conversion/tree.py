"""Walk the folders below SOURCE and leave out what systems put into them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from fnmatch import fnmatchcase, translate
from itertools import groupby
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.problems import FOREIGN, Problem
from nnunet_mamba_mis.utils.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif"})


def case_identifier(path: Path) -> str:
    """Return what serves as part of a file name everywhere, for the name of an image."""
    return re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", path.stem))


def stem_match(stem: str, path: Path) -> re.Match[str] | None:
    """Match the whole stem of a file's name, in any case; names may hold line breaks, which the `.` of `stem` takes."""
    return re.fullmatch(stem, path.stem, re.IGNORECASE | re.DOTALL)


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


# files that systems and publishers put beside images, in lower case; hidden ones are skipped too
_JUNK = _any_of(
    *("thumbs.db", "thumbs.db:encryptable", "ehthumbs*.db", "desktop.ini", "picasa.ini", "icon\r", "icon\uf00d"),
    # notes on a file: NTFS's of where it comes from, Synology's, Dropbox's
    *("*zone.identifier", "*@synoeastream", "*@synoresource", "*:com.dropbox.attr*"),
    # of editors, and of copies that were broken off
    *("~$*", "*~", "*.tmp", "*.temp"),
    *("license", "readme"),
)

# folders not to be walked into: of macOS's archiver and servers, thumbnails and bins of Synology, QNAP and Windows
_NO_DATA = _any_of(
    *("__macosx", "network trash folder", "temporary items"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
    *("$recycle.bin", "recycler", "system volume information", "lost+found"),
)


class Tree(dict[Path, list[Path]]):
    """The folders below the sources and the files in each, without hidden ones and what systems leave behind.

    Links are followed as far as they stay below a source; the others are reported.

    Args:
        sources: Folders.
        allowed: Where links may lead, if not below these sources only.

    Raises:
        UserError: A folder cannot be read.
    """

    def __init__(self, sources: Sequence[Path], allowed: Sequence[Path] = ()) -> None:
        super().__init__()
        self.problems: list[Problem] = []
        self._inside = [os.path.realpath(source) for source in (*sources, *allowed)]
        visited: set[str] = set()
        for source in sources:
            if source.is_file():
                path = Path(os.path.abspath(source))
                self.setdefault(path.parent, []).append(path)
                continue
            for root, subfolders, names in os.walk(os.path.abspath(source), followlinks=True, onerror=_cannot_list):
                folder = Path(root)
                # no folder twice, however it is reached
                if os.path.realpath(root) in visited:
                    subfolders.clear()
                    continue
                visited.add(os.path.realpath(root))
                subfolders[:] = [path.name for path in self._kept(folder, subfolders, _NO_DATA)]
                self[folder] = [path for path in self._kept(folder, names, _JUNK) if path.is_file()]

    def _kept(self, folder: Path, names: list[str], left_behind: re.Pattern[str]) -> list[Path]:
        # a leading dot: macOS puts ._ISIC_0000000.jpg, which is no image, beside ISIC_0000000.jpg
        names = sorted(name for name in names if not name.startswith(".") and not left_behind.match(name.lower()))
        return [path for path in map(folder.joinpath, names) if not path.is_symlink() or self._stays_below(path)]

    def _stays_below(self, link: Path) -> bool:
        target = os.path.realpath(link)
        if any(target == folder or target.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._inside):
            return True
        text = f"{link} is a link to {target}, which is outside of SOURCE: give that with -i too"
        self.problems.append(Problem(FOREIGN, text))
        return False

    def images(self, folder: Path) -> list[Path]:
        """Return the files in a folder that are images by their name."""
        return [path for path in self[folder] if path.suffix.lower() in IMAGE_SUFFIXES]

    def matching(self, pattern: str, stem: str) -> list[Path]:
        """Return the folders whose path ends so and that hold an image with such a stem."""
        parts = pattern.casefold().split("/")
        return [
            folder
            for folder in self
            if all(map(fnmatchcase, _last_parts(folder, len(parts)), parts))
            and any(stem_match(stem, path) for path in self.images(folder))
        ]


def _last_parts(folder: Path, number: int) -> list[str]:
    # people unpack into a folder of the same name: train/train is train
    parts = [name for name, _ in groupby(part.casefold() for part in folder.parts)]
    return parts[-number:] if len(parts) >= number else [""] * number


def _cannot_list(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        raise UserError(f"{error.filename} does not exist: -i takes the folder the dataset was unpacked to")
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")

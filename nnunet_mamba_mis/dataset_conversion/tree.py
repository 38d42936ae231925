"""Walk the folders below SOURCE, leaving out files of operating systems."""

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
    """Return an image's stem, reduced to characters that every file system accepts."""
    return re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", path.stem))


def stem_match(stem: str, path: Path) -> re.Match[str] | None:
    """Match a file's whole stem, ignoring case; the `.` of `stem` also matches line breaks, which names may contain."""
    return re.fullmatch(stem, path.stem, re.IGNORECASE | re.DOTALL)


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


# files that operating systems and publishers put beside images, as patterns in lower case; hidden files are skipped too
_JUNK = _any_of(
    *("thumbs.db", "thumbs.db:encryptable", "ehthumbs*.db", "desktop.ini", "picasa.ini", "icon\r", "icon\uf00d"),
    # metadata of another file, written by NTFS (the file's origin), Synology and Dropbox
    *("*zone.identifier", "*@synoeastream", "*@synoresource", "*:com.dropbox.attr*"),
    # files of editors and of interrupted copies
    *("~$*", "*~", "*.tmp", "*.temp"),
    *("license", "readme"),
)

# folders to skip: those of macOS's archiver and file servers; thumbnails, recycle bins and snapshots of Synology and
# QNAP; recycle bins and system folders of Windows and Linux
_NO_DATA = _any_of(
    *("__macosx", "network trash folder", "temporary items"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
    *("$recycle.bin", "recycler", "system volume information", "lost+found"),
)


class Tree(dict[Path, list[Path]]):
    """The folders below the sources and the files in each, without hidden files and files of operating systems.

    Links are followed if they stay below a source; others are reported.

    Args:
        sources: Folders or files.
        allowed: Further folders that links may lead to.

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
                # visit each folder only once, even if links lead to it
                if os.path.realpath(root) in visited:
                    subfolders.clear()
                    continue
                visited.add(os.path.realpath(root))
                subfolders[:] = [path.name for path in self._kept(folder, subfolders, _NO_DATA)]
                self[folder] = [path for path in self._kept(folder, names, _JUNK) if path.is_file()]

    def _kept(self, folder: Path, names: list[str], left_behind: re.Pattern[str]) -> list[Path]:
        # skip hidden files: beside ISIC_0000000.jpg, macOS puts ._ISIC_0000000.jpg, which is not an image
        names = sorted(name for name in names if not name.startswith(".") and not left_behind.match(name.lower()))
        return [path for path in map(folder.joinpath, names) if not path.is_symlink() or self._stays_below(path)]

    def _stays_below(self, link: Path) -> bool:
        target = os.path.realpath(link)
        if any(target == folder or target.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._inside):
            return True
        text = f"{link} is a link to {target}, which is outside SOURCE: give the target with -i, too"
        self.problems.append(Problem(FOREIGN, text))
        return False

    def images(self, folder: Path) -> list[Path]:
        """Return the files in a folder that have the suffix of an image."""
        return [path for path in self[folder] if path.suffix.lower() in IMAGE_SUFFIXES]

    def matching(self, pattern: str, stem: str) -> list[Path]:
        """Return the folders whose path ends with `pattern` and that contain an image with a matching stem."""
        parts = pattern.casefold().split("/")
        return [
            folder
            for folder in self
            if all(map(fnmatchcase, _last_parts(folder, len(parts)), parts))
            and any(stem_match(stem, path) for path in self.images(folder))
        ]


def _last_parts(folder: Path, number: int) -> list[str]:
    # archives are often unpacked into a folder of the same name: train/train counts as train
    parts = [name for name, _ in groupby(part.casefold() for part in folder.parts)]
    return parts[-number:] if len(parts) >= number else [""] * number


def _cannot_list(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        raise UserError(f"{error.filename} does not exist: give the folder that the dataset was unpacked to with -i")
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")

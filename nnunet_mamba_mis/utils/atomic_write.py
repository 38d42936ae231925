"""Write files and groups of files atomically."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".partial"
# seconds within which a running writer changes its file
_OLDEST = 3600
# seconds between attempts to replace an open file
_WAITS_IF_OPEN = (0.1, 0.3, 1.0, 2.0) if os.name == "nt" else ()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file atomically: a failure, kill or power cut leaves the previous file.

    The content goes into a temporary file in the same folder, which then replaces the previous file. The temporary
    name ends in `SUFFIX` and is unique: if several processes write the same path, the last one wins, and contents never
    mix. Leftovers of killed writers of this path are removed when they are an hour old.

    Args:
        path: The file to write or replace.

    Yields:
        A file to write bytes to.

    Raises:
        OSError: Writing failed; the previous file is unchanged.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{SUFFIX}")
    opened = partial.open("xb")
    try:
        with opened as file:
            # the file system's clock, which may be another machine's
            _remove_leftovers(path, older_than=os.fstat(file.fileno()).st_mtime - _OLDEST)
            yield file
            file.flush()
            os.fsync(file.fileno())  # otherwise the name could reach the disk before the content
        _replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # torch's writer replaces an exception with its own, which reports an incomplete file
        cause = error.__context__
        if isinstance(error, RuntimeError) and isinstance(cause, (OSError, KeyboardInterrupt)):
            raise cause from None
        raise
    _sync_folder(path.parent)


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Write a group of files: all appear in the folder once the last is complete; if writing fails, none appears.

    Args:
        folder: Folder in which they appear.

    Yields:
        A folder to write them into, under their names, with subfolders if necessary. They appear in the order in which
        they were written.

    Raises:
        OSError: Writing failed; earlier files of these names are unchanged.
    """
    partial = folder / f".{secrets.token_hex(8)}{SUFFIX}"
    partial.mkdir()
    try:
        yield partial
        written = sorted((file for file in partial.rglob("*") if file.is_file()), key=lambda f: f.stat().st_mtime_ns)
        for file in written:
            with file.open("r+b") as content:  # Windows flushes only files opened for writing
                os.fsync(content.fileno())
        for file in written:
            target = folder / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(file, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _sync_folder(folder)


def remove_leftover_folders(folder: Path) -> None:
    """Remove leftovers of killed `atomic_files` writers from a folder once they have been unchanged for an hour."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=SUFFIX) as file:
        oldest = os.fstat(file.fileno()).st_mtime - _OLDEST
    for partial in folder.glob(f".*{SUFFIX}"):
        with suppress(OSError):  # another process has removed it
            if partial.is_dir() and max(p.stat().st_mtime for p in (partial, *partial.rglob("*"))) < oldest:
                shutil.rmtree(partial)


def _remove_leftovers(path: Path, older_than: float) -> None:
    # earlier versions had no number in the name
    leftover = re.compile(rf"{re.escape(path.name)}(\.[0-9a-f]{{16}})?{re.escape(SUFFIX)}")
    with suppress(OSError):  # the folder cannot be listed, or another process has removed it
        for other in path.parent.iterdir():
            if leftover.fullmatch(other.name) and other.stat().st_mtime < older_than:
                other.unlink()


def _replace(file: Path, target: Path) -> None:
    """Rename a file over another. On Windows, retry: renaming fails while a virus scanner has one of them open."""
    for seconds in _WAITS_IF_OPEN:
        try:
            file.replace(target)
            return
        except PermissionError:
            time.sleep(seconds)
    file.replace(target)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system supports this
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

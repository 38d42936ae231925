"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".partial"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Write beside the file, then put it in its place: a kill or power cut leaves the file that was there before.

    Args:
        path: The file to write or replace.

    Yields:
        A file to write bytes to.

    Raises:
        OSError: It could not be written.
    """
    partial = Path(f"{path}{SUFFIX}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or the name could reach the disk before the content
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # torch's writer, left by an exception, raises another: that the file is not complete
        cause = error.__context__
        if isinstance(error, RuntimeError) and isinstance(cause, (OSError, KeyboardInterrupt)):
            raise cause from None
        raise
    _sync_folder(partial.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not on every system and file system
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

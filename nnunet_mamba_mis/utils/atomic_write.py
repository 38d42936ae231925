"""Atomic writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".partial"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file atomically: a failure, kill or power cut leaves the previous file.

    The content goes into a file beside it (`SUFFIX`), which then replaces it.

    Args:
        path: The file to write or replace.

    Yields:
        A file to write bytes to.

    Raises:
        OSError: Writing failed; the previous file is unchanged.
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
        # torch's writer replaces an exception by its own: that the file is incomplete
        cause = error.__context__
        if isinstance(error, RuntimeError) and isinstance(cause, (OSError, KeyboardInterrupt)):
            raise cause from None
        raise
    _sync_folder(partial.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

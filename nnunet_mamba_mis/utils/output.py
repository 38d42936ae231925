"""Output that never ends a command, even if a terminal lacks characters, a disk is full, or a stream is closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Output:
    """A standard stream that keeps its first failure instead of raising it, and drops what comes after.

    Args:
        stream: The stream; characters that its encoding lacks are written as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Write buffered text, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.failure = self.failure or error
        # otherwise writing the buffered text would fail again when Python exits, and child processes, which inherit the
        # descriptor, would fail to write
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        with suppress(OSError):
            self._stream.flush()


@contextmanager
def dependable_output() -> Iterator[Output]:
    """Replace the standard streams with `Output` objects within this context, and yield the one for stdout."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    # a stream is None if the shell closed it
    stdout = Output(before[0] or os.fdopen(1, "w", closefd=False))
    stderr = Output(before[1] or os.fdopen(2, "w", closefd=False))
    sys.stdout, sys.stderr = stdout, stderr  # type: ignore[assignment]
    try:
        yield stdout
    finally:
        stdout.flush()
        stderr.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Open closed standard streams: otherwise the next opened file would get one of their descriptors."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)

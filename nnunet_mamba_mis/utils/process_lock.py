"""A lock between processes, which the operating system releases when its holder ends, however it ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


class LockedError(Exception):
    """Another process holds the lock."""


def lock_file(path: Path) -> FileLock:
    """Lock a file, which is made and stays there, until the process ends or drops what is returned.

    Locks of the same file in one process are one and the same. Forked processes, as of data loaders, don't inherit it,
    so that none which outlives a killed holder keeps it.

    Raises:
        LockedError: Another process has locked it.
        OSError: The file cannot be made, or its file system has no locks.
    """
    # a soft lock, filelock's substitute on such file systems, would outlive a killed process
    lock = FileLock(path, is_singleton=True, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LockedError from None
    return lock

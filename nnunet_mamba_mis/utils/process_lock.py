"""A lock between processes, which the operating system releases when the holder ends, even if it is killed."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


class LockedError(Exception):
    """Another process holds the lock."""


def lock_file(path: Path) -> FileLock:
    """Lock a file until the process ends or drops the returned lock; create the file if necessary, and never remove it.

    Within one process, locks of the same file are the same object. Forked processes, such as a data loader's, do not
    inherit the lock, so they cannot keep it when they outlive a killed holder.

    Raises:
        LockedError: Another process holds the lock.
        OSError: The file cannot be created, or its file system has no locks.
    """
    # a soft lock, filelock's substitute on file systems without locks, would outlive a killed process
    lock = FileLock(path, is_singleton=True, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LockedError from None
    return lock

"""Build a dataset in a temporary folder beside its target, and publish it atomically."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from nnunet_mamba_mis.utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# not "Dataset…": nnU-Net would mistake a half-written folder for a dataset
_WORK_PREFIX = ".converting_"
# holds a dataset while its replacement is moved into place
_REPLACED_PREFIX = ".replaced_"


class Place(Protocol):
    """The target of a conversion: `folder`, inside the folder `raw`."""

    raw: Path
    folder: Path

    def check_is_free(self) -> None:
        """Raise UserError if the target exists and must not be replaced."""


@contextmanager
def work_folder(target: Place) -> Iterator[WorkFolder]:
    """Provide a folder beside the target; it is created on first use and removed at the end.

    Raises:
        UserError: A file cannot be written; nothing is left behind.
    """
    folder = WorkFolder(target)
    try:
        yield folder
    except OSError as error:
        raise UserError(f"cannot write {target.folder}: {error.strerror or error}. Nothing was converted") from error
    finally:
        folder.remove()


class WorkFolder:
    """A folder to build a dataset in. Its lock distinguishes a running conversion from a killed one.

    Args:
        target: Where to publish the dataset.
    """

    def __init__(self, target: Place) -> None:
        self._target = target
        # a new name each time, so that remains of a killed run never interfere
        self._folder = target.raw / f"{_WORK_PREFIX}{target.folder.name}_{uuid.uuid4().hex[:8]}"
        self._lock: int | None = None

    def subfolder(self, name: str) -> Path:
        """Create a subfolder and return its path.

        Raises:
            OSError: It cannot be created.
        """
        if not self._folder.exists():
            self._target.raw.mkdir(parents=True, exist_ok=True)
            with _exclusive(self._target.raw):
                _restore_and_clean(self._target.raw)
                self._folder.mkdir()
                self._lock = _try_lock(self._folder)
        folder = self._folder / name
        folder.mkdir()
        return folder

    def publish(self, dataset: Path) -> None:
        """Move a finished subfolder to the target, replacing a dataset that is to be overwritten.

        Raises:
            UserError: Another process has taken the id in the meantime.
            OSError: The folder cannot be renamed.
        """
        target = self._target.folder
        old = target.with_name(_REPLACED_PREFIX + target.name)
        with _exclusive(self._target.raw):
            self._target.check_is_free()
            if target.exists():
                target.rename(old)
            # if this process is killed here, the next run restores the old dataset
            dataset.rename(target)
            if old.exists():
                # the old dataset is removed with the work folder
                old.rename(self._folder / "replaced")

    def remove(self) -> None:
        """Remove the folder with its contents."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _restore_and_clean(raw: Path) -> None:
    """Restore a dataset that a killed run had moved aside, and remove the work folders of killed runs."""
    for old in raw.glob(f"{_REPLACED_PREFIX}Dataset*"):
        target = old.with_name(old.name.removeprefix(_REPLACED_PREFIX))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):  # it may belong to another user
                old.rename(target)
    for folder in raw.glob(f"{_WORK_PREFIX}*"):
        lock = _try_lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """Lock a folder and return the descriptor that holds the lock, or None if it cannot be locked."""
    if not fcntl:
        return None
    with suppress(OSError):  # another process holds the lock, or another user owns the folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    return None


@contextmanager
def _exclusive(raw: Path) -> Iterator[None]:
    """Let only one run at a time change nnUNet_raw."""
    if not fcntl:
        yield
        return
    descriptor = os.open(raw, os.O_RDONLY)
    try:
        # where locking is not available, accept the small risk that two runs meet here
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

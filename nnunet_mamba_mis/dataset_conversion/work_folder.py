"""Build a dataset beside its place, so that it appears there complete or not at all."""

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

# never "Dataset…": nnU-Net would take a half-written folder for a dataset
_WORK_PREFIX = ".converting_"
# holds a dataset while the one that replaces it takes its place
_REPLACED_PREFIX = ".replaced_"


class Place(Protocol):
    """Where a folder is to appear: `folder`, in the folder `raw`."""

    raw: Path
    folder: Path

    def check_is_free(self) -> None:
        """Raise UserError if something is there that must not be replaced."""


@contextmanager
def work_folder(target: Place) -> Iterator[WorkFolder]:
    """Give a folder beside the target, which is made when first used and is gone at the end.

    Raises:
        UserError: Something cannot be written; nothing is left.
    """
    folder = WorkFolder(target)
    try:
        yield folder
    except OSError as error:
        raise UserError(f"cannot write {target.folder}: {error.strerror or error}. Nothing was converted") from error
    finally:
        folder.remove()


class WorkFolder:
    """A folder to build a dataset in; a lock distinguishes a running conversion from a killed one.

    Args:
        target: Of the dataset.
    """

    def __init__(self, target: Place) -> None:
        self._target = target
        # the name is new each time, so what a killed run left is never in the way
        self._folder = target.raw / f"{_WORK_PREFIX}{target.folder.name}_{uuid.uuid4().hex[:8]}"
        self._lock: int | None = None

    def subfolder(self, name: str) -> Path:
        """Return a new folder in it.

        Raises:
            OSError: It cannot be made.
        """
        if not self._folder.exists():
            self._target.raw.mkdir(parents=True, exist_ok=True)
            with _only_one(self._target.raw):
                _restore_and_clean(self._target.raw)
                self._folder.mkdir()
                self._lock = _try_lock(self._folder)
        folder = self._folder / name
        folder.mkdir()
        return folder

    def publish(self, dataset: Path) -> None:
        """Make a folder of this one the dataset, in place of the one to be overwritten, if there is one.

        Raises:
            UserError: Someone else took the id meanwhile.
            OSError: It cannot be renamed.
        """
        target = self._target.folder
        old = target.with_name(_REPLACED_PREFIX + target.name)
        with _only_one(self._target.raw):
            self._target.check_is_free()
            if target.exists():
                target.rename(old)
            # killed here, the next run brings the old one back
            dataset.rename(target)
            if old.exists():
                # to be removed with the rest
                old.rename(self._folder / "replaced")

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _restore_and_clean(raw: Path) -> None:
    """Bring back a dataset that a killed run had moved aside, and remove what killed runs left."""
    for old in raw.glob(f"{_REPLACED_PREFIX}Dataset*"):
        target = old.with_name(old.name.removeprefix(_REPLACED_PREFIX))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):  # that of another user
                old.rename(target)
    for folder in raw.glob(f"{_WORK_PREFIX}*"):
        lock = _try_lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """Lock a folder and return the descriptor that holds the lock, None if that cannot be done."""
    if not fcntl:
        return None
    with suppress(OSError):  # another process has it, or another user's folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    return None


@contextmanager
def _only_one(raw: Path) -> Iterator[None]:
    """Let one run at a time do this to nnUNet_raw."""
    if not fcntl:
        yield
        return
    descriptor = os.open(raw, os.O_RDONLY)
    try:
        # where locks are not to be had, the chance that two runs meet here is taken
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

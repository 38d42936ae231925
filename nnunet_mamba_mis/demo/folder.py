"""The demo's output folder: its own, or not touched."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from nnunet_mamba_mis.nnunet.paths import FOLDERS
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.process_lock import LockedError, lock_file

MARKER = ".mamba_mis_demo"
_LOCK = ".lock"

# what the demo makes, and hence may remove; anything else in the folder stays
SYNTHETIC = "Kvasir-SEG-synthetic"
_CREATED = (
    SYNTHETIC,
    *FOLDERS,
    "predictions",
    "logs",
    "report.md",
    "overlays.png",
    "training_curve.png",
)


def check_folder(folder: Path, source: Path | None) -> None:
    """Refuse a folder that is someone else's, or that has to do with the source.

    Args:
        folder: The output folder, may be absent.
        source: The user's images, if given; never written to.

    Raises:
        UserError: The folder cannot be used; nothing was changed.
    """
    way_out = "choose another folder with -o"
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise UserError(
                f"{folder} exists and was not made by `mamba_mis demo` (it has no file {MARKER}), so it stays as it "
                f"is: {way_out}"
            )
    elif folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is not a folder: {way_out}")
    if source is not None:
        inside, outside = folder.resolve(), source.resolve()
        if inside.is_relative_to(outside):
            raise UserError(f"{folder} lies in {source}, which the demo must not write to: {way_out}")
        if outside.is_relative_to(inside):
            raise UserError(f"{source} lies in {folder}, which the demo empties when it starts: {way_out}")


def start_afresh(folder: Path) -> FileLock | None:
    """Make the folder, or remove from it what an earlier demo left; takes what `check_folder` lets pass.

    Returns:
        A lock that keeps other demos out while it exists; None where the file system has none.

    Raises:
        UserError: The folder cannot be written, or another demo is running in it.
    """
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / MARKER) as file:
            file.write(b"`mamba_mis demo -o` this folder removes what an earlier demo made here.\n")
        with suppress(OSError):
            lock = lock_file(folder / _LOCK)
        for path in (folder / name for name in _CREATED):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in (*FOLDERS, "logs"):
            (folder / name).mkdir()
    except LockedError:
        raise UserError(f"another demo is running in {folder}: wait for it, or choose another folder with -o") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}. Give another folder with -o") from error
    return lock

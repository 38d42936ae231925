"""Check and prepare the demo's output folder, without touching anything that the demo did not create."""

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

# what the demo creates, and may therefore remove; anything else in the folder stays
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
    """Refuse a folder that was not made by the demo, or that overlaps with the source.

    Args:
        folder: The output folder, which need not exist yet.
        source: The user's images, if given, which stay unchanged.

    Raises:
        UserError: The folder cannot be used; nothing was changed.
    """
    way_out = "choose another folder with -o"
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise UserError(
                f"{folder} exists and was not created by `mamba_mis demo` (it has no file {MARKER}), so it was left "
                f"unchanged: {way_out}"
            )
    elif folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is not a folder: {way_out}")
    if source is not None:
        inside, outside = folder.resolve(), source.resolve()
        if inside.is_relative_to(outside):
            raise UserError(f"{folder} is inside {source}, which the demo must not write to: {way_out}")
        if outside.is_relative_to(inside):
            raise UserError(f"{source} is inside {folder}, which the demo empties when it starts: {way_out}")


def start_afresh(folder: Path) -> FileLock | None:
    """Create the folder, or remove the results of an earlier demo from it; call `check_folder` first.

    Returns:
        A lock that keeps other demos out while it exists; None if the file system does not support locks.

    Raises:
        UserError: The folder cannot be written to, or another demo is running in it.
    """
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / MARKER) as file:
            file.write(b"Running `mamba_mis demo -o` with this folder removes the results of an earlier demo.\n")
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
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}. Choose another folder with -o"
        ) from error
    return lock

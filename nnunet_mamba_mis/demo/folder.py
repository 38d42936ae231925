"""The demo's output folder: its own, or not touched."""

from __future__ import annotations

import shutil
from pathlib import Path

from nnunet_mamba_mis.nnunet.paths import FOLDERS
from nnunet_mamba_mis.utils.errors import UserError

MARKER = ".mamba_mis_demo"

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


def start_afresh(folder: Path) -> None:
    """Make the folder, or remove from it what an earlier demo left; takes what `check_folder` lets pass.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text("`mamba_mis demo -o` this folder removes what an earlier demo made here.\n")
        for path in (folder / name for name in _CREATED):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in (*FOLDERS, "logs"):
            (folder / name).mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}. Give another folder with -o") from error

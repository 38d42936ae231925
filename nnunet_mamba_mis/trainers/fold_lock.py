"""Let only one process at a time work on a fold."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from filelock import FileLock

from nnunet_mamba_mis.utils.process_lock import LockedError, lock_file

LOCK = "training.lock"


def lock_fold(folder: Path) -> FileLock | None:
    """Lock a fold's folder for the lifetime of the returned lock; under DDP the first process locks it for all.

    Print a warning if the folder cannot be locked, as on some network file systems.

    Raises:
        SystemExit: Another process holds the lock, or the folder cannot be created.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return None
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"{folder} cannot be created: {error}") from None
    try:
        return lock_file(path)
    except LockedError:
        raise SystemExit(
            f"Another process trains or validates in {folder}: wait until it ends, or stop it. Nothing was changed. "
            f"(It holds the lock {path}, which ends with that process, even if it is killed.)"
        ) from None
    except OSError as error:
        print(
            f"WARNING: {path} cannot be locked ({error}). Make sure that no other process trains this fold: they would "
            "overwrite each other's checkpoints"
        )
        return None

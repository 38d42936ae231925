"""One process at a time works on a fold."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from filelock import FileLock

from nnunet_mamba_mis.utils.process_lock import LockedError, lock_file

LOCK = "training.lock"


def lock_fold(folder: Path) -> FileLock | None:
    """Lock a fold's folder while what is returned exists; under DDP the first process does it for all.

    Where it cannot be locked, as on some network file systems, a warning is printed.

    Raises:
        SystemExit: Another process has it, or the folder cannot be made.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return None
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"{folder} cannot be made: {error}") from None
    try:
        return lock_file(path)
    except LockedError:
        raise SystemExit(
            f"Another process trains or validates in {folder}: wait until it has ended, or stop it. Nothing was "
            f"changed. (It has locked {path}; the lock ends with that process, also when it is killed.)"
        ) from None
    except OSError as error:
        print(
            f"WARNING: {path} cannot be locked ({error}). Make sure that no other process trains this fold: each would "
            "replace the checkpoints of the other"
        )
        return None

"""Read the checkpoint of a fold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnunet_mamba_mis.nnunet.checkpoint import NETWORK
from nnunet_mamba_mis.nnunet.checkpoint import read_checkpoint as read
from nnunet_mamba_mis.nnunet.records import Record, check_record
from nnunet_mamba_mis.utils.errors import UserError


class _Arguments(Record):
    """Of the trainer."""

    configuration: str


class Checkpoint(Record):
    """What nnU-Net saves, as far as it is read here."""

    network_weights: dict[str, Any]
    trainer_name: str
    init_args: _Arguments
    inference_allowed_mirroring_axes: tuple[int, ...] | list[int] | None = None
    optimizer_state: Any = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what nnU-Net saved; weights are on the CPU.

    Raises:
        UserError: The file is missing, broken or another, or holds what could run code.
    """
    if not os.path.exists(path):  # False for names that no file can have, too
        model = path.parent.parent
        there = sorted(str(other.relative_to(model)) for other in model.glob("fold_*/*.pth"))
        raise UserError(f"there is no {path}; choose with -f and -chk: {', '.join(there) or 'there is none'}")
    return check_record(read(path, NETWORK), Checkpoint, f"{path} is not a checkpoint of nnU-Net")

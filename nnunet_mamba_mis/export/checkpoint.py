"""Read the checkpoint of a fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_mamba_mis.nnunet.checkpoint import NETWORK
from nnunet_mamba_mis.nnunet.checkpoint import read_checkpoint as read
from nnunet_mamba_mis.utils.errors import UserError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what nnU-Net saved; weights are on the CPU.

    Raises:
        UserError: The file is missing, broken or another, or holds what could run code.
    """
    if not path.exists():
        model = path.parent.parent
        there = sorted(str(other.relative_to(model)) for other in model.glob("fold_*/*.pth"))
        raise UserError(f"there is no {path}; choose with -f and -chk: {', '.join(there) or 'there is none'}")
    return read(path, NETWORK)

"""Read a checkpoint of nnU-Net's without running any code in it."""

from __future__ import annotations

import codecs
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    try:
        # tensors, plain values and numpy's numbers, which nnU-Net logs; nothing that could run code
        with torch.serialization.safe_globals(_numpy_globals()):
            checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than weights and numbers, and was not loaded: {error}") from None
    except Exception as error:  # a damaged file makes torch and pickle raise almost anything
        raise UserError(
            f"{path} cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}"
        ) from None
    return check_record(checkpoint, Checkpoint, f"{path} is not a checkpoint of nnU-Net")


def _numpy_globals() -> list[Any]:
    """What numpy's numbers and arrays are pickled with, by numpy 2 and numpy 1."""
    core = np._core.multiarray  # type: ignore[attr-defined]
    functions = [getattr(core, name) for name in ("scalar", "_reconstruct")]
    old = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [*functions, *old, codecs.encode, np.ndarray, np.dtype, *types]

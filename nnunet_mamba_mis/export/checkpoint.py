"""Read a checkpoint of nnU-Net's without running any code in it."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    try:
        # tensors, plain values and numpy's numbers, which nnU-Net logs; nothing that could run code
        with torch.serialization.safe_globals(_numpy_globals()):
            checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than weights and numbers, and was not loaded: {error}") from None
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    wanted = ("network_weights", "init_args", "trainer_name")
    if not isinstance(checkpoint, dict) or not all(name in checkpoint for name in wanted):
        raise UserError(f"{path} is not a checkpoint of nnU-Net: it must have {', '.join(wanted)}")
    return checkpoint


def _numpy_globals() -> list[Any]:
    """What numpy's numbers and arrays are pickled with, by numpy 2 and numpy 1."""
    core = np._core.multiarray  # type: ignore[attr-defined]
    functions = [getattr(core, name) for name in ("scalar", "_reconstruct")]
    old = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [*functions, *old, codecs.encode, np.ndarray, np.dtype, *types]

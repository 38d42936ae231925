"""nnU-Net's checkpoints: read without running code that may be in them, and checked.

A checkpoint is a pickle, and nnU-Net loads it with `torch.load(weights_only=False)`, which runs whatever a stranger has
put there. Here tensors, plain values and numpy's numbers are all that a checkpoint may hold.
"""

from __future__ import annotations

import codecs
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import numpy as np
import torch

from nnunet_mamba_mis.utils.errors import UserError


class Entry(NamedTuple):
    """What a checkpoint has under a name: in words, and as a test of the value, which is None where it is missing."""

    name: str
    expected: str
    is_right: Callable[[Any], bool]


def is_numeric(value: Any) -> bool:
    """Whether a value is a number, or an array or tensor of some."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return isinstance(value, (Real, torch.Tensor))


def is_dict_of(value: Any, is_right: Callable[[Any], bool]) -> bool:
    """Whether a value is a dict with strings as keys and such values."""
    return isinstance(value, dict) and all(isinstance(key, str) and is_right(entry) for key, entry in value.items())


def is_list_of(value: Any, is_right: Callable[[Any], bool]) -> bool:
    """Whether a value is a list of such values."""
    return isinstance(value, list) and all(map(is_right, value))


# what fine-tuning takes
WEIGHTS = (Entry("network_weights", "tensors by name", lambda v: is_dict_of(v, lambda w: isinstance(w, torch.Tensor))),)
# and what prediction takes
NETWORK = (
    *WEIGHTS,
    Entry("trainer_name", "a string", lambda v: isinstance(v, str)),
    Entry(
        "init_args",
        "a dict with the name of the configuration",
        lambda v: isinstance(v, dict) and isinstance(v.get("configuration"), str),
    ),
    Entry(
        "inference_allowed_mirroring_axes",
        "numbers of axes, or nothing",
        lambda v: v is None or (isinstance(v, (tuple, list)) and all(isinstance(axis, int) for axis in v)),
    ),
)
# and what continuing takes
TRAINING = (
    *NETWORK,
    Entry(
        "optimizer_state",
        "a dict with numbers in state, and param_groups",
        lambda v: (
            isinstance(v, dict)
            and isinstance(v.get("state"), dict)
            and all(is_dict_of(state, lambda x: x is None or is_numeric(x)) for state in v["state"].values())
            and is_list_of(v.get("param_groups"), lambda group: isinstance(group, dict))
        ),
    ),
    Entry("grad_scaler_state", "a dict of numbers, or nothing", lambda v: v is None or is_dict_of(v, is_numeric)),
    Entry(
        "logging",
        "lists of numbers by name",
        lambda v: is_dict_of(v, lambda x: is_list_of(x, lambda y: is_numeric(y) or is_list_of(y, is_numeric))),
    ),
    Entry("_best_ema", "a number, or nothing", lambda v: v is None or isinstance(v, Real)),
    Entry(
        "current_epoch",
        "a number from 0",
        lambda v: isinstance(v, Integral) and not isinstance(v, bool) and int(v) >= 0,
    ),
)


def read_checkpoint(path: str | Path, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return a checkpoint's content; tensors are on the CPU.

    Args:
        path: The file, in torch's format of any version.
        entries: What it must have; further ones are not looked at.

    Raises:
        UserError: The file is missing or damaged, holds what could run code, or lacks an entry; the text names it.
    """
    try:
        with _allowed():
            # mapped, as often not all is used; torch's format of before 1.6 cannot be
            checkpoint = torch.load(path, map_location="cpu", mmap=is_zipfile(path), weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} was not loaded: it holds {on_one_line(found[1])}, which is neither a weight nor a number and "
                "could run code. If it is of a trainer of yours, torch.serialization.add_safe_globals in that "
                "trainer's file allows it"
            ) from None
        raise UserError(f"{path} cannot be read: it is damaged, or holds more than weights and numbers") from None
    # what torch raises for damaged files has no common type
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__} {on_one_line(str(error))}") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is not a checkpoint of nnU-Net: it holds a {type(checkpoint).__name__}")
    wrong = [entry for entry in entries if not entry.is_right(checkpoint.get(entry.name))]
    if missing := [entry.name for entry in wrong if entry.name not in checkpoint]:
        raise UserError(f"{path} is not a checkpoint of nnU-Net: it has no {', '.join(missing)}")
    for name, expected, _ in wrong:
        raise UserError(f"{path} is damaged: its {name} must be {expected} (it is a {type(checkpoint[name]).__name__})")
    return checkpoint


def on_one_line(text: str) -> str:
    """Return the beginning of an error's text, which may quote a stranger's file, fit for a terminal."""
    return repr(" ".join(text.split()))[1:-1][:300]


@contextmanager
def without_code() -> Iterator[None]:
    """While entered, nnU-Net's own functions load checkpoints as `read_checkpoint` does, or raise."""
    names = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
    before = {name: os.environ.get(name) for name in names}
    _set_environment(names)
    try:
        with _allowed():
            yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _allowed() -> torch.serialization.safe_globals:
    """Let torch load numpy's numbers and arrays too, which nnU-Net logs, as numpy 2 and numpy 1 pickle them."""
    core = np._core.multiarray  # type: ignore[attr-defined]
    functions = [getattr(core, name) for name in ("scalar", "_reconstruct")]
    old = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return torch.serialization.safe_globals([*functions, *old, codecs.encode, np.ndarray, np.dtype, *types])

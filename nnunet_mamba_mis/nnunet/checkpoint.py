"""Read and check nnU-Net's checkpoints, without running code that may be in them.

A checkpoint is a pickle, and nnU-Net loads it with `torch.load(weights_only=False)`, which runs any code in it. Here a
checkpoint may hold only tensors, plain values and numpy's numbers.
"""

from __future__ import annotations

import codecs
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, TypeVar
from zipfile import is_zipfile

import numpy as np
import torch
from pydantic import AfterValidator, ConfigDict, Field, Strict

from nnunet_mamba_mis.nnunet.records import Record, check_record
from nnunet_mamba_mis.utils.errors import UserError

T = TypeVar("T")


def is_numeric(value: Any) -> bool:
    """Return whether a value is a number, or an array or tensor of numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return isinstance(value, (Real, torch.Tensor))


def _check_number(value: Any) -> Any:
    if not is_numeric(value):
        raise ValueError(f"expected a number, found {value!r:.60}")
    return value


def _check_numbers(value: Any) -> Any:
    for number in value if isinstance(value, list) else [value]:
        _check_number(number)
    return value


_Number = Annotated[Any, AfterValidator(_check_number)]
_Numbers = Annotated[Any, AfterValidator(_check_numbers)]


class Weights(Record):
    """The part of a checkpoint that fine-tuning uses."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    network_weights: dict[str, torch.Tensor]


class _Arguments(Record):
    """Arguments of the trainer."""

    configuration: str


class RecordedNetwork(Record):
    """The network, as this package's trainers record it."""

    name: str = Field(alias="class")
    arguments: dict[str, Any]


class _Optimizer(Record):
    network: RecordedNetwork | None = None


class Network(Weights):
    """The part of a checkpoint that prediction and export use."""

    trainer_name: str
    init_args: _Arguments
    # nnU-Net writes a tuple; a list is accepted, too
    inference_allowed_mirroring_axes: Annotated[tuple[int, ...], Strict(False)] | None = None
    optimizer_state: _Optimizer | None = None


class RecordedAverage(Record):
    """The network's own weights, which this package's trainers record if `network_weights` are averages."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    steps: Annotated[int, Field(ge=0)]
    own_weights: dict[str, torch.Tensor]


class _OptimizerState(_Optimizer):
    state: dict[int, dict[str, _Number | None]]
    param_groups: list[dict[str, Any]]
    # added by this package's trainers; `resume` has an entry for each process
    resume: list[dict[str, Any]] = Field(default_factory=list)
    average: RecordedAverage | None = None


class Training(Network):
    """The part of a checkpoint that resuming uses."""

    optimizer_state: _OptimizerState
    grad_scaler_state: dict[str, _Number] | None
    logging: dict[str, list[_Numbers]]
    best_ema: _Number | None = Field(alias="_best_ema")
    current_epoch: Annotated[int, Field(ge=0)]


def read_checkpoint(path: str | Path, kind: type[T]) -> T:
    """Return a checkpoint's content; tensors are on the CPU.

    Args:
        path: The file, in any version of torch's format.
        kind: Content that it must have: `Weights`, `Network` or `Training`.

    Raises:
        UserError: The file is missing or damaged, could run code, or has other content; the message names the file.
    """
    try:
        with _allowed():
            # memory-mapped, as often only a part is used; torch's format before 1.6 cannot be mapped
            checkpoint = torch.load(path, map_location="cpu", mmap=is_zipfile(path), weights_only=True)
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} was not loaded: it holds {on_one_line(match[1])}, which is neither a weight nor a number and "
                "could run code"
            ) from None
        raise UserError(f"{path} cannot be read: it is damaged, or holds more than weights and numbers") from None
    # torch raises exceptions of many types for damaged files
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__} {on_one_line(str(error))}") from None
    return check_record(checkpoint, kind, f"{path} is not a usable checkpoint")


def on_one_line(text: str) -> str:
    """Return the start of an error's text, which may quote an untrusted file, in a form safe for a terminal."""
    return repr(" ".join(text.split()))[1:-1][:300]


@contextmanager
def without_code() -> Iterator[None]:
    """Within the context, keep nnU-Net's functions from running code in checkpoints: they load weights, or raise."""
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
    """Let torch also load numpy's numbers and arrays, which nnU-Net logs, as pickled by numpy 2 and numpy 1."""
    core = np._core.multiarray  # type: ignore[attr-defined]
    functions = [getattr(core, name) for name in ("scalar", "_reconstruct")]
    old = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return torch.serialization.safe_globals([*functions, *old, codecs.encode, bytes, np.ndarray, np.dtype, *types])

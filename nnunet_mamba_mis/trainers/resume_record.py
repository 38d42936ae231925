"""Read and check what a checkpoint records of a partial epoch: files get damaged, and may be untrusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch

from nnunet_mamba_mis.nnunet.checkpoint import Training, is_numeric
from nnunet_mamba_mis.trainers.random_state import is_random_state
from nnunet_mamba_mis.utils.errors import UserError

# added to the optimizer's state in nnU-Net's checkpoints: a list with a dict for each process
RESUME = "resume"
RANDOM_STATE = "random_state"


def recorded_progress(
    checkpoint: Training,
    path: str,
    rank: int,
    processes: int,
    current: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Return what a process recorded in a checkpoint, or nothing if the number of processes differs.

    Args:
        checkpoint: Content of the file.
        path: The file, for messages.
        rank: Number of the process.
        processes: Number of processes now.
        current: Values that the record may replace, by name; recorded values must have the same types.
        device: Device that trains.

    Raises:
        UserError: The record is damaged.
    """
    records = checkpoint.optimizer_state.resume
    if len(records) != processes:
        return {}
    record = records[rank]
    if not is_random_state(record.get(RANDOM_STATE), device):
        raise UserError(f"{path} is damaged: optimizer_state.{RESUME} has no usable {RANDOM_STATE}")
    kept = {name: record[name] for name in current if name in record}
    for name, value in kept.items():
        if not is_alike(value, current[name]):
            raise UserError(f"{path} is damaged: {name} in optimizer_state.{RESUME} has the wrong type")
    return {RANDOM_STATE: record[RANDOM_STATE]} | kept


def check_log(checkpoint: Training, path: str, names: Iterable[str]) -> None:
    """Check that a checkpoint's log has a list of each name, with an entry per epoch.

    Raises:
        UserError: A list is missing or too short.
    """
    logged, epochs = checkpoint.logging, checkpoint.current_epoch
    for name in names:
        if name not in logged:
            raise UserError(f"{path} is damaged: logging has no {name}")
        # a trainer that was saved before its first epoch has empty lists
        if 0 < len(logged[name]) < epochs:
            raise UserError(f"{path} is damaged: logging has {len(logged[name])} {name}, but current_epoch is {epochs}")


def is_alike(value: Any, current: Any) -> bool:
    """Return whether a recorded value can replace the current one: both are step outputs, numbers or of one type."""
    if isinstance(current, list):
        return isinstance(value, list) and all(isinstance(output, dict) and _is_output(output) for output in value)
    if isinstance(current, Real):
        return is_numeric(value)
    return current is None or isinstance(value, type(current))


def _is_output(output: dict[Any, Any]) -> bool:
    return "loss" in output and all(map(is_numeric, output.values()))

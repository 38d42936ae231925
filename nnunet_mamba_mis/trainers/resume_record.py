"""What a checkpoint says of the epoch in progress, checked: files get damaged, and may be a stranger's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch

from nnunet_mamba_mis.nnunet.checkpoint import Training, is_numeric
from nnunet_mamba_mis.trainers.random_state import is_random_state
from nnunet_mamba_mis.utils.errors import UserError

# what is added to the optimizer's state in nnU-Net's checkpoints: a dict for each process
RESUME = "resume"
RANDOM_STATE = "random_state"


def recorded_progress(
    checkpoint: Training,
    path: str,
    rank: int,
    processes: int,
    present: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Return what a process had added to a checkpoint; nothing if there were more processes, or fewer.

    Args:
        checkpoint: Content of the file.
        path: The file, for messages.
        rank: Number of the process.
        processes: How many there are now.
        present: What may be replaced, by name; what is recorded must be of the same kind.
        device: Of the training.

    Raises:
        UserError: The record is damaged.
    """
    of_all = checkpoint.optimizer_state.resume
    if len(of_all) != processes:
        return {}
    mine = of_all[rank]
    if not is_random_state(mine.get(RANDOM_STATE), device):
        raise UserError(f"{path} is damaged: optimizer_state.{RESUME} has no usable {RANDOM_STATE}")
    kept = {name: mine[name] for name in present if name in mine}
    for name, value in kept.items():
        if not is_alike(value, present[name]):
            raise UserError(f"{path} is damaged: {name} in optimizer_state.{RESUME} has a wrong type")
    return {RANDOM_STATE: mine[RANDOM_STATE]} | kept


def check_log(checkpoint: Training, path: str, names: Iterable[str]) -> None:
    """Check that a checkpoint's log has these lists, as long as training was.

    Raises:
        UserError: A list is missing or too short.
    """
    logged, epochs = checkpoint.logging, checkpoint.current_epoch
    for name in names:
        if name not in logged:
            raise UserError(f"{path} is damaged: its logging has no {name}")
        # nothing at all is what a trainer has that was saved before its first epoch
        if 0 < len(logged[name]) < epochs:
            raise UserError(f"{path} is damaged: logging has {len(logged[name])} {name}, but current_epoch is {epochs}")


def is_alike(value: Any, present: Any) -> bool:
    """Whether what was kept can take an attribute's place: outputs of steps, numbers, or what has the same type."""
    if isinstance(present, list):
        return isinstance(value, list) and all(isinstance(output, dict) and _is_output(output) for output in value)
    if isinstance(present, Real):
        return is_numeric(value)
    return present is None or isinstance(value, type(present))


def _is_output(output: dict[Any, Any]) -> bool:
    return "loss" in output and all(map(is_numeric, output.values()))

"""Choose nnU-Net's device, and the slots for jobs on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nnunet_mamba_mis.utils.errors import UserError


def choose_device(device: str | None, gpus: Sequence[int] | None, on_cluster: bool) -> str:
    """Return nnU-Net's name of the device.

    Args:
        device: The user's choice, if any.
        gpus: Numbers of this machine's GPUs to use, if the user chose any.
        on_cluster: Whether jobs run on other machines, so that this machine's devices do not matter.

    Raises:
        UserError: This machine does not have the device.
    """
    if on_cluster:
        return device or "cuda"
    import torch

    if (device == "cuda" or gpus) and not torch.cuda.is_available():
        raise UserError("no usable CUDA device was found (run `mamba_mis doctor` for the reason): use -device cpu")
    if gpus and max(gpus) >= torch.cuda.device_count():
        raise UserError(f"--gpus {max(gpus)}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def make_slots(jobs_at_once: int | None, gpus: Sequence[int] | None) -> list[dict[str, str]]:
    """Return the environment variables of each slot, which can run one job at a time.

    Args:
        jobs_at_once: Number of slots if `gpus` is not given; 1 by default.
        gpus: Numbers of GPUs, as indices into CUDA_VISIBLE_DEVICES if it is set.
    """
    if not gpus:
        return [{}] * (jobs_at_once or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [visible.split(",")[gpu] for gpu in gpus] if visible else map(str, gpus)
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]

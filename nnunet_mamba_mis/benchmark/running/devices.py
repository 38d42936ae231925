"""On what jobs run: nnU-Net's device, and the places for jobs on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nnunet_mamba_mis.utils.errors import UserError


def choose_device(device: str | None, gpus: Sequence[int] | None, on_cluster: bool) -> str:
    """Return nnU-Net's name of the device.

    Args:
        device: That the user chose, if any.
        gpus: Numbers of this machine's GPUs that the user chose, if any.
        on_cluster: Whether jobs run on other machines, so that what this one has does not matter.

    Raises:
        UserError: This machine does not have it.
    """
    if on_cluster:
        return device or "cuda"
    import torch

    if (device == "cuda" or gpus) and not torch.cuda.is_available():
        raise UserError("there is no usable CUDA device (`mamba_mis doctor` says why): use -device cpu")
    if gpus and max(gpus) >= torch.cuda.device_count():
        raise UserError(f"--gpus {max(gpus)}: this machine has {torch.cuda.device_count()}, counted from 0")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def make_slots(jobs_at_once: int | None, gpus: Sequence[int] | None) -> list[dict[str, str]]:
    """Return, for each place to run a job, the environment variables that choose it.

    Args:
        jobs_at_once: How many share the machine, without `gpus`; 1 by default.
        gpus: Numbers of GPUs, counted among those of CUDA_VISIBLE_DEVICES if it is set.
    """
    if not gpus:
        return [{}] * (jobs_at_once or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [visible.split(",")[gpu] for gpu in gpus] if visible else map(str, gpus)
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]

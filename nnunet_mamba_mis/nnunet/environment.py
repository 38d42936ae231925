"""Environment variables that adapt nnU-Net's commands to a machine."""

from __future__ import annotations

import os
import re

from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import count_cores

# workers of preprocessing and prediction: more of them do not help
_MOST_WORKERS = 8

# variables that nnU-Net converts to numbers when it is imported → smallest valid number, and meaning
_NUMBERS = {
    "nnUNet_n_proc_DA": (0, "processes that augment, besides the one that trains"),
    "nnUNet_def_n_proc": (1, "processes of preprocessing and prediction"),
}


def check_variables() -> None:
    """Check the variables that nnU-Net reads as numbers.

    Raises:
        UserError: A variable is not a valid number, so that even importing nnU-Net would fail.
    """
    for name, (least, meaning) in _NUMBERS.items():
        value = os.environ.get(name, str(least))
        if not re.fullmatch(r"\s*\+?0*[0-9]{1,6}\s*", value) or int(value) < least:
            raise UserError(
                f"{name}={value!r:.60} must be an integer, at least {least} ({meaning}): correct it, or unset it"
            )


def variables_for(device: str, jobs_at_once: int = 1) -> dict[str, str]:
    """Return variables that adapt nnU-Net to the device, except those that the user has set.

    Args:
        device: nnU-Net's name of the device.
        jobs_at_once: How many commands share the machine.
    """
    if device != "cpu":
        return {}
    # training takes all cores, so workers would only get in its way: augment in the process that trains
    workers = max(1, min(_MOST_WORKERS, count_cores() // jobs_at_once))
    variables = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": str(workers)}
    if jobs_at_once > 1:
        # every job of nnU-Net has a thread for each core: threads must not spin while they wait for each other
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
    return {name: value for name, value in variables.items() if name not in os.environ}

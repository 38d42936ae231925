"""Environment variables that suit nnU-Net's commands to a machine."""

from __future__ import annotations

import os
import re

from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import count_cores

# workers of preprocessing and prediction: more of them bring nothing
_MOST_WORKERS = 8

# which nnU-Net turns into numbers when it is imported → the smallest that it works with, and what they are of
_NUMBERS = {
    "nnUNet_n_proc_DA": (0, "processes that augment; 0: none besides the one that trains"),
    "nnUNet_def_n_proc": (1, "processes of preprocessing and prediction"),
}


def check_variables() -> None:
    """Check the variables that nnU-Net reads as numbers.

    Raises:
        UserError: One is set to something else; nnU-Net could not even be imported.
    """
    for name, (least, meaning) in _NUMBERS.items():
        value = os.environ.get(name, str(least))
        if not re.fullmatch(r"\s*\+?0*[0-9]{1,6}\s*", value) or int(value) < least:
            raise UserError(
                f"{name}={value!r:.60}: it must be an integer from {least} on ({meaning}): unset it, or set it to one"
            )


def variables_for(device: str, jobs_at_once: int = 1) -> dict[str, str]:
    """Return variables that suit nnU-Net to the device, except those that the user has set.

    Args:
        device: nnU-Net's name of it.
        jobs_at_once: How many commands share the machine.
    """
    if device != "cpu":
        return {}
    # Training takes all cores, so that workers would only be in its way: augment in the process that trains.
    workers = max(1, min(_MOST_WORKERS, count_cores() // jobs_at_once))
    suited = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": str(workers)}
    if jobs_at_once > 1:
        # nnU-Net takes a thread for each core in every job: they must not spin while they wait for each other
        suited["OMP_WAIT_POLICY"] = "PASSIVE"
    return {name: value for name, value in suited.items() if name not in os.environ}
